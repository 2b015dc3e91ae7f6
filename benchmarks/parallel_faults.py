# SPDX-License-Identifier: GPL-2.0-or-later
"""Many page faults at once: against the disk alone, on more than one CPU, and beside slow storage."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.rivals import compile_program, interleaved, ratio, run_json, table

_TMPFS = Path("/dev/shm")  # noqa: S108 - storage that costs no time
_DISK_THREADS = 16


def bench_disk(pages: int, swap_dir: Path, rounds: int) -> None:
    """What 16 threads get that touch random pages, and what the disk gives to as many readers."""
    program = compile_program("fault_threads")
    rows = interleaved(
        {
            name: partial(run_json, [program, name, str(pages), str(_DISK_THREADS), swap_dir])
            for name in ("disk", "engine", "pool")
        },
        rounds,
    )
    table(f"{_DISK_THREADS} threads, {pages} random pages, {swap_dir}", rows)
    for name in ("engine", "pool"):
        what = "with io_uring" if name == "engine" else "with threads that read"
        ratio(
            f"pages a second {what}, over the disk alone",
            rows[name]["pages_per_s"] / rows["disk"]["pages_per_s"],
            "as near to 1 as can be",
        )


def bench_cpus(pages: int, rounds: int) -> None:
    """What eight threads get, and what one gets."""
    program = compile_program("fault_threads")
    rows = interleaved(
        {
            f"{threads} threads": partial(run_json, [program, "engine", str(pages), str(threads), _TMPFS])
            for threads in (1, 2, 8)
        },
        rounds,
    )
    table(f"{pages} random pages, swap directory on tmpfs", rows)
    for threads in (2, 8):
        ratio(
            f"pages a second, {threads} threads over 1",
            rows[f"{threads} threads"]["pages_per_s"] / rows["1 threads"]["pages_per_s"],
            "at least 1.7 on 2 CPUs",
        )


def bench_slow_storage(samples: int, rounds: int) -> None:
    """A page of zeros, and memory that is given up, beside 64 threads whose reads take 20 ms. Needs root."""
    program = compile_program("slow_reads")
    rows = interleaved({"engine": partial(run_json, [program, "64", "20", str(samples)])}, rounds)
    table("64 threads wait for reads of 20 ms: what a page that needs no read waits", rows)
    ratio("a page of zeros over one read, p50", rows["engine"]["zero_p50_us"] / 20000, "at most 0.05")
