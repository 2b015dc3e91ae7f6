# SPDX-License-Identifier: GPL-2.0-or-later
"""Private guest memory beside shared memory; and what attaching to a VMM costs it."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.rivals import ROOT, compile_program, in_turns, medians, paired, ratio, run_json, table
from vmmswap.attach.attach import attach_vm, detach_process
from vmmswap.attach.mailbox import Mailbox
from vmmswap.linux.process import thread_ids

RIVALS = ("live", "private", "private-huge")
IDLE_S = 5.0
_THREADS = 4
_STATS = struct.Struct("QQ")


def bench_swap_out(mib: int, swap_dir: Path, rounds: int) -> None:
    """An idle guest's memory, and that of a guest at work."""
    program = compile_program("swap_out")
    command = {rival: [program, rival, str(mib), swap_dir] for rival in RIVALS}
    runs = in_turns({name: partial(run_json, [*argv, "idle"]) for name, argv in command.items()}, rounds)
    columns = ("total_ms", "mib_per_s", "swap_in_ms", "swap_in_mib_per_s", "net_freed_ratio")
    rows = medians(runs)
    _table(f"{mib} MiB, idle guest, {swap_dir}", rows, columns)
    for rival in RIVALS[1:]:
        for figure, what in (("mib_per_s", "swap-out"), ("swap_in_mib_per_s", "swap-in")):
            share = paired(runs, (rival, figure), ("live", figure))
            ratio(f"{what}, {rival} over shared memory", share, "at least 0.8")
        ratio(f"net memory freed, {rival}", rows[rival]["net_freed_ratio"], "at least 0.97")
    runs = in_turns({name: partial(run_json, argv) for name, argv in command.items()}, rounds)
    columns = ("total_ms", "hot_gap_us", "all_gap_us", "hot_ratio", "pause_us", "resident_pages")
    _table(f"Guest at work, {mib} MiB, {swap_dir}", medians(runs), columns)
    for rival in RIVALS[1:]:
        for figure, what in (("hot_gap_us", "hot"), ("all_gap_us", "other")):
            share = paired(runs, (rival, figure), ("live", figure))
            ratio(f"{what} thread's longest gap, {rival} over shared memory", share, "at most 1")
        ratio(
            f"hot thread's throughput meanwhile, {rival}", medians(runs)[rival]["hot_ratio"], "at least 0.5"
        )


def _table(title: str, rows: dict[str, dict[str, float]], columns: tuple[str, ...]) -> None:
    table(title, {name: {key: row[key] for key in columns} for name, row in rows.items()})


class Vmm:
    """attached.c, running."""

    def __init__(self) -> None:
        stats = os.memfd_create("stats")
        os.ftruncate(stats, mmap.PAGESIZE)
        self._stats = mmap.mmap(stats, mmap.PAGESIZE)
        self._process = subprocess.Popen(
            [compile_program("attached"), str(stats)], pass_fds=[stats], stdin=subprocess.DEVNULL
        )
        os.close(stats)
        self.pid = self._process.pid
        while _STATS.unpack_from(self._stats)[1] < _THREADS:
            time.sleep(0.001)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def longest_gap_us(self) -> float:
        """Since the last call."""
        gap_ns = _STATS.unpack_from(self._stats)[0]
        struct.pack_into("Q", self._stats, 0, 0)
        return gap_ns / 1000


@contextmanager
def _vmm() -> Iterator[Vmm]:
    vmm = Vmm()
    try:
        yield vmm
    finally:
        vmm.close()


def _attach_once(pid: int) -> None:
    """As a monitor that has just started: tells us when, and detaches when told to."""
    pidfd = os.pidfd_open(pid)
    print("here", flush=True)
    sys.stdin.readline()
    vm = attach_vm(pidfd)
    with vm.fds, Mailbox(vm.vmm.mailbox) as mailbox:
        print(mailbox.box.tid, flush=True)
        sys.stdin.readline()
        uffd, page = vm.vmm.uffd, vm.vmm.dummy_page
        detach_process(vm.vmm.pidfd, [uffd], page, mailbox=vm.vmm.mailbox)
        print("gone", flush=True)


def _use_of(pid: int, tid: int) -> tuple[int, int]:
    """Nanoseconds on a processor, and how often it got one."""
    ran_ns, _, times = Path(f"/proc/{pid}/task/{tid}/schedstat").read_text().split()
    return int(ran_ns), int(times)


class Attaching:
    """A process of its own that attaches, and its answers."""

    def __init__(self, pid: int) -> None:
        argv = [sys.executable, "-m", "benchmarks.private_figures", str(pid)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(argv, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        assert answer, "the attach has failed"
        return answer

    def go_on(self) -> str:
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self._answer()

    def end(self) -> None:
        self._process.communicate()


def _attach(idle_s: float) -> dict[str, float]:
    """What a VMM's threads see of an attach and of a detach, and of as long a time with neither."""
    with _vmm() as vmm:
        attaching = Attaching(vmm.pid)
        vmm.longest_gap_us()
        since_s = time.monotonic()
        tid = int(attaching.go_on())
        took_s = time.monotonic() - since_s
        found = {"attach_gap_us": vmm.longest_gap_us()}
        time.sleep(took_s)
        found["neither_gap_us"] = vmm.longest_gap_us()
        before = _use_of(vmm.pid, tid)
        time.sleep(idle_s)
        after = _use_of(vmm.pid, tid)
        found["planted_cpu_us"], found["planted_wake_ups"] = (
            (after[0] - before[0]) / 1000,
            after[1] - before[1],
        )
        vmm.longest_gap_us()
        attaching.go_on()
        found["detach_gap_us"] = vmm.longest_gap_us()
        attaching.end()
        assert tid not in thread_ids(vmm.pid)
    return found


def bench_attach(rounds: int) -> None:
    """The longest that one of the VMM's threads stood still."""
    runs = in_turns({"attach": partial(_attach, IDLE_S / rounds)}, rounds)
    rows = medians(runs)
    table(f"Attach to a VMM with private memory, {rounds} times", rows)
    worst_us = max(run["attach_gap_us"] for run in runs["attach"])
    ratio("a thread's longest gap in an attach, ms", rows["attach"]["attach_gap_us"] / 1000, "at most 5")
    ratio("the same, the worst of all, ms", worst_us / 1000, "at most 5")
    ratio(
        f"processor time of the planted thread in {IDLE_S:g} s in which nothing moves, us",
        sum(run["planted_cpu_us"] for run in runs["attach"]),
        "0",
    )


if __name__ == "__main__":
    _attach_once(int(sys.argv[1]))
