# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that wakes up, from our store and from the kernel's swap, and one that was never out."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

from benchmarks.rivals import (
    Runs,
    compile_program,
    dd,
    in_turns,
    medians,
    paired,
    ratio,
    run_json,
    table,
)

_MODES = ("resident", "kernel", "demand", "around", "replay", "both")
_PROBE_MIB = 16
_SET_SHARE = 5  # a fifth of memory is touched


def bench(mib: int, swap_dir: Path, rounds: int) -> None:
    """A fifth of memory in scattered runs, by one thread and by four; pages beside it; all in order."""
    for store, place in (("RAM tier", "ram"), ("disk tier", str(swap_dir))):
        modes = [mode for mode in _MODES if mode != "kernel" or _has_kernel_swap(place)]
        _bench_set(modes, mib, place, rounds, store)
        _bench_beside(mib, place, rounds, store)
        _bench_all(modes, mib // 2, place, rounds, store)
        _bench_threads(mib, place, rounds, store)


def _has_kernel_swap(place: str) -> bool:
    """Say why, if kernel swap cannot be among the rivals."""
    try:
        run_json([compile_program("wake_up"), "kernel", str(_PROBE_MIB), place])
    except subprocess.CalledProcessError as why:
        print(f"\nWithout kernel swap: {why.stderr.strip()}")
        return False
    return True


def _runs(modes: list[str], rounds: int, *arguments: str) -> Runs:
    program = compile_program("wake_up")
    return in_turns({mode: partial(run_json, [program, mode, *arguments]) for mode in modes}, rounds)


def _over(runs: Runs, what: str, over: tuple[str, str], under: tuple[str, str], target: str) -> None:
    if over[0] in runs and under[0] in runs:
        ratio(what, paired(runs, over, under), target)


def _bench_set(modes: list[str], mib: int, place: str, rounds: int, store: str) -> None:
    on_disk = place != "ram"
    runs = _runs(modes, rounds, str(mib), place)
    table(f"A fifth of {mib} MiB, {store}", medians(runs))
    first, later = ("0.8", "0.4") if on_disk else ("1.3", "0.5")
    for mode in ("demand", "around"):
        _over(
            runs,
            f"first wake-up, {mode} over kernel swap",
            (mode, "first_ms"),
            ("kernel", "first_ms"),
            f"at most {first}",
        )
    _over(
        runs,
        "later wake-ups, replay over kernel swap",
        ("replay", "touched_ms"),
        ("kernel", "touched_ms"),
        f"at most {later}",
    )
    _over(
        runs,
        "later wake-ups, replay over never out",
        ("replay", "touched_ms"),
        ("resident", "touched_ms"),
        "at most 5 from RAM",
    )
    _over(
        runs,
        "later wake-ups, replay over page fault by page fault",
        ("replay", "touched_ms"),
        ("demand", "touched_ms"),
        "below 1",
    )
    _over(
        runs,
        "later wake-ups, with neighbours over without",
        ("both", "touched_ms"),
        ("replay", "touched_ms"),
        "below 1 if neighbours shall come by default",
    )
    _over(
        runs,
        "one page fault in 100, p99, replay over page fault by page fault",
        ("replay", "fault_p99_us"),
        ("demand", "fault_p99_us"),
        "at most 2",
    )
    if on_disk:
        _bench_dd(runs, Path(place), rounds)


def _bench_dd(runs: Runs, swap_dir: Path, rounds: int) -> None:
    """The set's share of what is stored, read by dd in one go."""
    read_mib = round(medians(runs)["replay"]["record_mib"] / _SET_SHARE) // 2 * 2
    if not read_mib:
        return
    read = medians(in_turns({"dd": partial(dd, swap_dir, read_mib)}, rounds))["dd"]
    ratio(
        f"later wake-ups, replay over dd of {read_mib} MiB",
        medians(runs)["replay"]["touched_ms"] / (1000 * read_mib / read["read_mib_per_s"]),
        "at most 1.3",
    )


def _bench_beside(mib: int, place: str, rounds: int, store: str) -> None:
    """Pages outside of the set are touched in the middle of a replay, and the same without one."""
    runs = _runs(["demand", "replay"], rounds, str(mib), place, "beside")
    table(f"A fifth of {mib} MiB, and a page outside of it now and then, {store}", medians(runs))
    for figure, name in (("other_p50_us", "p50"), ("other_p99_us", "p99")):
        _over(
            runs,
            f"a page outside of the set, {name}, with a replay over without",
            ("replay", figure),
            ("demand", figure),
            "at most 1",
        )


def _bench_all(modes: list[str], mib: int, place: str, rounds: int, store: str) -> None:
    runs = _runs([mode for mode in modes if mode != "resident"], rounds, str(mib), place, "all")
    table(f"All of {mib} MiB in address order, {store}", medians(runs))
    target = "at least 1" if place != "ram" else "at least 1.5"
    for what, mode, figure in (
        ("first wake-up, page fault by page fault", "demand", "first_ms"),
        ("first wake-up, with neighbours", "around", "first_ms"),
        ("later wake-ups, replay", "replay", "touched_ms"),
    ):
        _over(runs, f"rate over kernel swap's, {what}", ("kernel", figure), (mode, figure), target)


def _bench_threads(mib: int, place: str, rounds: int, store: str) -> None:
    program = compile_program("wake_up")
    runs = in_turns(
        {
            f"{mode}, {threads} threads": partial(
                run_json, [program, mode, str(mib), place, "set", str(threads)]
            )
            for mode in ("demand", "replay")
            for threads in (1, 4)
        },
        rounds,
    )
    table(f"A fifth of {mib} MiB, touched by 1 and by 4 threads, {store}", medians(runs))
    for mode, figure in (("demand", "first_ms"), ("replay", "touched_ms")):
        _over(
            runs,
            f"{mode}, 4 threads over 1",
            (f"{mode}, 4 threads", figure),
            (f"{mode}, 1 threads", figure),
            "at most 1",
        )
