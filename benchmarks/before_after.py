# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine of another commit against this tree's, in turns: python -m benchmarks.before_after COMMIT

Each benchmark program is built from its own tree's sources. Prints Markdown. On a busy machine, run it with
real-time priority (chrt -f 5): then all rivals have the processors to themselves.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from benchmarks.rivals import ROOT, compile_program, interleaved, run_json, table

TMPFS = Path("/dev/shm")  # noqa: S108 - a swap directory in RAM


def _unpack(commit: str, folder: Path) -> None:
    packed = subprocess.run(["git", "-C", ROOT, "archive", commit], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=packed, check=True)


def compare(trees: Mapping[str, Path], swap_dir: Path, rounds: int) -> None:
    """trees: by the name of each table's row."""
    faults = {name: compile_program("fault_latency", tree) for name, tree in trees.items()}
    for order in ("rnd", "seq"):
        rows = interleaved(
            {
                name: partial(run_json, [program, "engine", "16384", order, TMPFS])
                for name, program in faults.items()
            },
            rounds,
        )
        table(f"One page fault, 16384 pages, {order}, swap directory on tmpfs", rows)
    passes = {name: compile_program("swap_out", tree) for name, tree in trees.items()}
    for folder, mib in ((TMPFS, 256), (swap_dir, 512)):
        rows = interleaved(
            {
                name: partial(run_json, [program, "live", str(mib), folder, "idle"])
                for name, program in passes.items()
            },
            rounds,
        )
        table(f"{mib} MiB out and in, idle guest, {folder}", rows)


def compare_stores(trees: Mapping[str, Path], swap_dir: Path, rounds: int) -> None:
    """What goes to each kind of store and comes back: time, and processor time of all threads."""
    programs = {name: compile_program("tier_job", tree) for name, tree in trees.items()}
    for contents in ("libs", "random"):
        rows = interleaved(
            {
                f"{store} {name}": partial(run_json, [program, store, contents, "256", swap_dir])
                for store in ("file", "ram", "disk")
                for name, program in programs.items()
            },
            rounds,
        )
        columns = ("out_ms", "out_cpu_ms", "in_ms", "in_cpu_ms")
        table(
            f"256 MiB, {contents}, {swap_dir}",
            {name: {key: row[key] for key in columns} for name, row in rows.items()},
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.before_after", description=__doc__)
    parser.add_argument("commit", help="what to compare with")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--swap-dir", type=Path, default=Path("/var/tmp"))  # noqa: S108
    parser.add_argument("--stores", action="store_true", help="the kinds of store, and nothing else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder)
        _unpack(options.commit, before)
        run = compare_stores if options.stores else compare
        run({"before": before, "after": ROOT}, options.swap_dir, options.rounds)


if __name__ == "__main__":
    main()
