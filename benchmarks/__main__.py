# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of docs/performance.md.

Run on a quiet machine. Each table holds rivals of the same run, medians of several rounds, one run of each
rival after the other in each round. Prints Markdown.
"""

from __future__ import annotations

import argparse
import compileall
import os
import platform
import subprocess
from functools import partial
from pathlib import Path

from benchmarks import (
    idle_guest,
    large_guest,
    linux_wake,
    many_enables,
    many_vms,
    parallel_faults,
    private_figures,
    store_figures,
    wake_figures,
)
from benchmarks.monitor_memory import measure
from benchmarks.rivals import ROOT, compile_program, dd, interleaved, ratio, run_json, table

TMPFS = Path("/dev/shm")  # noqa: S108 - a swap directory in RAM


def bench_faults(options: argparse.Namespace) -> None:
    """One page at a time, from tmpfs: the engine against the smallest handlers."""
    program = compile_program("fault_latency")
    pages = 4096 if options.quick else 16384
    for order in ("rnd", "seq"):
        rows = interleaved(
            {
                name: partial(run_json, [program, name, str(pages), order, TMPFS])
                for name in ("samecpu", "poll", "engine")
            },
            options.rounds,
        )
        table(f"One page fault, {pages} pages, {order}, swap directory on tmpfs", rows)
        p50 = {name: figures["p50_us"] for name, figures in rows.items()}
        ratio("engine over the same-CPU floor, p50", p50["engine"] / p50["samecpu"], "at most 1.25")
        ratio(
            "engine over the poll+read handler, p50",
            p50["engine"] / p50["poll"],
            "at most 0.3 where poll >= 40 us",
        )


def bench_throughput(options: argparse.Namespace) -> None:
    """All of an idle guest's incompressible memory against dd of as many bytes, same directory, O_DIRECT."""
    program = compile_program("swap_out")
    mib = 256 if options.quick else 1024
    rows = interleaved(
        {
            "dd": partial(dd, options.swap_dir, mib),
            "live": partial(run_json, [program, "live", str(mib), options.swap_dir, "idle"]),
            "freeze": partial(run_json, [program, "freeze", str(mib), options.swap_dir, "idle"]),
        },
        options.rounds,
    )
    table(f"{mib} MiB, idle guest, {options.swap_dir}", rows)
    for mode in ("live", "freeze"):
        ratio(
            f"swap-out {mode} over dd",
            rows[mode]["mib_per_s"] / rows["dd"]["write_mib_per_s"],
            "at least 0.9",
        )
        ratio(
            f"swap-in {mode} over dd",
            rows[mode]["swap_in_mib_per_s"] / rows["dd"]["read_mib_per_s"],
            "at least 0.9",
        )


def bench_pause(options: argparse.Namespace) -> None:
    """What a swap-out costs a guest that runs on."""
    program = compile_program("swap_out")
    for mib in (256,) if options.quick else (256, 1024, 4096):
        rows = interleaved(
            {
                mode: partial(run_json, [program, mode, str(mib), options.swap_dir])
                for mode in ("live", "freeze", "staging")
            },
            options.rounds,
        )
        table(f"Guest at work, {mib} MiB", rows)
        live, freeze = rows["live"], rows["freeze"]
        ratio(
            "hot thread's longest gap, live over freeze",
            live["hot_gap_us"] / freeze["hot_gap_us"],
            "at most 0.05",
        )
        ratio(
            "hot thread's longest gap, live, ms a GiB", live["hot_gap_us"] / 1000 / (mib / 1024), "at most 20"
        )
        ratio("total time, live over freeze", live["total_ms"] / freeze["total_ms"], "at most 1.3")
        ratio("hot thread's throughput meanwhile over before", live["hot_ratio"], "at least 0.5")


def bench_private(options: argparse.Namespace) -> None:
    """Private guest memory beside shared memory."""
    private_figures.bench_swap_out(256 if options.quick else 1024, options.swap_dir, options.rounds)


def bench_attach(options: argparse.Namespace) -> None:
    """What attaching costs a VMM."""
    private_figures.bench_attach(4 * options.rounds)


def bench_memory(options: argparse.Namespace) -> None:
    """The monitor's own memory."""
    sizes = (256, 1024) if options.quick else (256, 1024, 4096)
    rows = {f"{mib} MiB guest": measure(mib, options.swap_dir) for mib in sizes}
    table("The monitor's PSS", rows)
    for mib, figures in zip(sizes, rows.values(), strict=True):
        ratio(
            f"PSS over 40 MiB + 0.4 % of {mib} MiB",
            figures["pss_mib_swapped_out"] / (40 + 0.004 * mib),
            "at most 1",
        )


def bench_store(options: argparse.Namespace) -> None:
    """The store of tiers, and the file of raw pages."""
    mib = 64 if options.quick else 256
    store_figures.bench_guest(options.swap_dir, options.rounds)
    for contents in ("libs", "mixed"):
        store_figures.bench_ram(contents, mib, options.swap_dir, options.rounds)
    bench_disk(options)
    store_figures.bench_faults(4096 if options.quick else 16384, options.rounds)


def bench_disk(options: argparse.Namespace) -> None:
    """The part of `store` that goes to disk and comes back from there, against dd."""
    store_figures.bench_disk(64 if options.quick else 256, options.swap_dir, options.rounds)


def bench_wake(options: argparse.Namespace) -> None:
    """A guest that wakes up for the second time."""
    wake_figures.bench(64 if options.quick else 512, options.swap_dir, options.rounds)


def bench_linux_wake(options: argparse.Namespace) -> None:
    """A real Linux guest that wakes up for the second time."""
    linux_wake.bench(32 if options.quick else 160, options.swap_dir, options.rounds)


def bench_idle(options: argparse.Namespace) -> None:
    """A Linux guest that does nothing."""
    idle_guest.bench(12 if options.quick else 60)  # seconds; less than ten teach nothing


def bench_threads(options: argparse.Namespace) -> None:
    """Many page faults at once."""
    pages = 4096 if options.quick else 32768
    parallel_faults.bench_disk(pages, options.swap_dir, options.rounds)
    parallel_faults.bench_cpus(pages, options.rounds)
    parallel_faults.bench_slow_storage(20 if options.quick else 100, options.rounds)


def bench_many(options: argparse.Namespace) -> None:
    """Many idle VMs."""
    many_vms.bench(options.vms, *((5, 5) if options.quick else (180, 240)))


def bench_large(options: argparse.Namespace) -> None:
    """A guest with a lot of memory."""
    large_guest.bench((1, 64) if options.quick else (1, 16, 256))
    large_guest.bench_populated(1 if options.quick else options.populated_gib, options.swap_dir)


def bench_enables(options: argparse.Namespace) -> None:
    """Many VMs that go out at once."""
    many_enables.bench(*((8, "8M") if options.quick else (50, "32M")), options.swap_dir)


BENCHES = {
    "store": bench_store,
    "disk": bench_disk,
    "wake": bench_wake,
    "linux-wake": bench_linux_wake,
    "idle": bench_idle,
    "faults": bench_faults,
    "threads": bench_threads,
    "throughput": bench_throughput,
    "pause": bench_pause,
    "private": bench_private,
    "attach": bench_attach,
    "memory": bench_memory,
    "many": bench_many,
    "large": bench_large,
    "enables": bench_enables,
}
PARTS = {"disk"}  # of another one


def main() -> None:
    """Run what was asked for, or everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("benches", nargs="*", choices=[[], *BENCHES], metavar="|".join(BENCHES))
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, few rounds: whether it runs at all"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vms", type=int, default=100, help="how many, for `many`")
    parser.add_argument("--populated-gib", type=int, default=16, help="of the full guest, for `large`")
    parser.add_argument("--swap-dir", type=Path, default=Path("/var/tmp"))  # noqa: S108 - on a disk, unlike /tmp
    options = parser.parse_args()
    # An installed vmmswap is compiled, so the monitors here are, too.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(ROOT / "vmmswap", quiet=1)
    if options.quick:
        options.rounds = 2
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    print(
        f"Linux {platform.release()}, {platform.machine()}, commit {commit}, {options.rounds} rounds, "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors as it began"
    )
    for name in options.benches or [name for name in BENCHES if name not in PARTS]:
        BENCHES[name](options)


if __name__ == "__main__":
    main()
