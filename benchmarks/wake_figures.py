# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that wakes up: with a replay of what it touched before, page fault by page fault, and never out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.rivals import compile_program, in_turns, medians, paired, ratio, run_json, table


def bench(mib: int, swap_dir: Path, rounds: int) -> None:
    """Until a fifth of memory, in short runs in an order that differs each time, has been touched."""
    program = compile_program("wake_up")
    for store, place in (("RAM tier", "ram"), ("disk tier", str(swap_dir))):
        runs = in_turns(
            {
                mode: partial(run_json, [program, mode, str(mib), place])
                for mode in ("resident", "demand", "replay")
            },
            rounds,
        )
        table(f"Second and later wake-ups, {mib} MiB, {store}", medians(runs))
        ratio(
            "time until touched, replay over page fault by page fault",
            paired(runs, ("replay", "touched_ms"), ("demand", "touched_ms")),
            "below 1",
        )
        ratio(
            "time until touched, replay over never out",
            paired(runs, ("replay", "touched_ms"), ("resident", "touched_ms")),
            "at most 5 from RAM",
        )
        ratio(
            "one touch in 100, p99, replay over page fault by page fault",
            paired(runs, ("replay", "p99_us"), ("demand", "p99_us")),
            "at most 2",
        )
