# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmmswapctl demo`: a real guest's memory leaves and comes back; the kernel measures, the guest checks."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmmswap.ctl.client import Client, Watch
from vmmswap.ctl.demo_stage import NAME, Guest, Stage
from vmmswap.ctl.failure import CtlError, ExitStatus
from vmmswap.ctl.host_memory import MemorySample, sample
from vmmswap.ctl.output import StatusKeys, mib, print_json, print_table
from vmmswap.ctl.waiting import failed, progress, until_settled
from vmmswap.reasons import reason_of
from vmmswap.status import State

_DEVICES = 2
_OPERATIONS = 20_000  # of the guest's workers, before it falls idle
_RATE = 1000  # operations a second of each worker once it is awake: busy, but leaving time for the check
_BUG = "this is a bug: please report it"
_SWAP_DIRS = ("/var/tmp", "/var/lib", "/tmp", ".")  # noqa: S108  the first that holds unnamed files


@dataclass(frozen=True, slots=True)
class _Step:
    name: str
    took_s: float
    memory: MemorySample


@dataclass(slots=True)
class _Report:
    quiet: bool
    steps: list[_Step] = field(default_factory=list)
    status: StatusKeys = field(default_factory=dict)  # after the swap-out
    faults: StatusKeys = field(default_factory=dict)  # after the guest woke
    checked_bytes: int = 0

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)


def run(args: argparse.Namespace) -> None:
    """Play the demo. CtlError if anything failed, above all a wrong byte."""
    report = _Report(quiet=args.json)
    swap_root = args.swap_dir or _default_swap_dir()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="vmmswap-demo-") as folder,
            tempfile.TemporaryDirectory(prefix="vmmswap-demo-", dir=swap_root) as swap_dir,
        ):
            asyncio.run(_run(Stage(Path(folder), Path(swap_dir)), args.size, report))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise CtlError(
            ExitStatus.FAILED, f"{reason_of(error)}; --swap-dir names another directory"
        ) from error
    _print_report(report)


async def _run(stage: Stage, size_mib: int, report: _Report) -> None:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  this is one
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await stage.start_bus()
        await stage.start_monitor()
        guest = await stage.start_guest(
            [size_mib // 2, size_mib // 4, size_mib - size_mib // 2 - size_mib // 4]
        )
        await stage.guard(asyncio.create_task(_play(stage, guest, report)))
        await stage.end_guest(guest)
    except asyncio.CancelledError as error:
        raise CtlError(
            ExitStatus.INTERRUPTED, "interrupted; the demo's processes and files are gone"
        ) from error
    finally:
        await stage.clear()


async def _play(stage: Stage, guest: Guest, report: _Report) -> None:
    await guest.ready()
    async with Client.connect(stage.bus_address) as client:
        await client.wait_for(NAME)
        async with client.watch(NAME) as watch:
            await _put_to_work(guest, report)
            await _swap_out(client, watch, guest, report)
            await _wake(client, guest, report)
            await _swap_out_at_work(client, watch, guest, report)
            await _swap_in(client, watch, guest, report)


async def _put_to_work(guest: Guest, report: _Report) -> None:
    report.say(f"A guest fills its memory, starts {_DEVICES} device processes, works, and falls idle.")
    async with _step(report, guest, "guest at work"):
        await guest.job("fill")
        await guest.job(f"fork {_DEVICES}")
        await guest.order("work start")
        await guest.operations(_OPERATIONS)
        await guest.job("work stop")


async def _swap_out(client: Client, watch: Watch, guest: Guest, report: _Report) -> None:
    report.say("Enable: all of its memory is swapped out.")
    async with _step(report, guest, "swapped out"):
        report.status = await _operate(client, watch, "Enable", State.ACTIVE, report)
    status = report.status
    before, after = report.steps[-2].memory.guest, report.steps[-1].memory.guest
    if after > before // 10:
        raise CtlError(
            ExitStatus.FAILED,
            f"{mib(after)} of the guest's {mib(before)} are still on RAM after Enable; "
            f"{status['PinnedPages']} pages are pinned by the check of {status['PinCheck']}",
        )


async def _wake(client: Client, guest: Guest, report: _Report) -> None:
    report.say("The guest wakes, works, and checks every byte in every process.")
    async with _step(report, guest, "guest awake"):
        await guest.order(f"work start rate={_RATE}")
        await _verify(guest, report)
    report.faults = await client.status(NAME)


async def _swap_out_at_work(client: Client, watch: Watch, guest: Guest, report: _Report) -> None:
    report.say("Enable again, while the guest works on: what it uses comes back at once.")
    async with _step(report, guest, "swapped out at work"):
        await _operate(client, watch, "Enable", State.ACTIVE, report)


async def _swap_in(client: Client, watch: Watch, guest: Guest, report: _Report) -> None:
    report.say("Disable: the rest is swapped in while the guest works on; every byte is checked again.")
    async with _step(report, guest, "swapped in"):
        await _operate(client, watch, "Disable", State.READY, report)
    await guest.job("work stop")
    await _verify(guest, report)
    _check(await guest.order("status"))  # what the workers have found while they worked


async def _operate(client: Client, watch: Watch, method: str, wanted: State, report: _Report) -> StatusKeys:
    await client.order(NAME, method)
    with progress(NAME, quiet=report.quiet) as show:
        status = await until_settled(client, watch, show)
    if status["State"] != wanted:
        raise failed(status)
    return status


async def _verify(guest: Guest, report: _Report) -> None:
    done = await guest.job("verify by=all")
    _check(done)
    report.checked_bytes += done["bytes"]


def _check(result: dict[str, Any]) -> None:
    """Raise if the guest has seen a wrong byte."""
    wrong = result["first_wrong"]
    if wrong is not None:
        raise CtlError(
            ExitStatus.FAILED,
            f"the guest found {result['wrong_bytes']} wrong bytes in {result['wrong_pages']} pages; in page "
            f"{wrong['page']} at byte {wrong['offset']} process {wrong['process']} expected "
            f"{wrong['expected']:#04x} and found {wrong['actual']:#04x}; {_BUG}",
        )
    if result["wrong_bytes"] or result["bus_errors"]:
        raise CtlError(
            ExitStatus.FAILED,
            f"the guest found {result['wrong_bytes']} wrong bytes and {result['bus_errors']} unreadable "
            f"pages; {_BUG}",
        )


@asynccontextmanager
async def _step(report: _Report, guest: Guest, name: str) -> AsyncIterator[None]:
    start = time.monotonic()
    yield
    report.steps.append(_Step(name, time.monotonic() - start, sample(guest.pid)))


def _default_swap_dir() -> Path:
    for name in _SWAP_DIRS:
        try:
            os.close(os.open(name, os.O_TMPFILE | os.O_RDWR, 0o600))
        except OSError:
            continue
        return Path(name)
    raise CtlError(
        ExitStatus.FAILED,
        f"none of {', '.join(_SWAP_DIRS)} can hold unnamed files (O_TMPFILE); name another with --swap-dir",
    )


def _print_report(report: _Report) -> None:
    if report.quiet:
        print_json(_as_json(report))
        return
    first = report.steps[0].memory
    rows = [
        (
            step.name,
            f"{step.took_s:.1f} s",
            mib(step.memory.guest),
            _gain(step.memory.available, first.available),
            _gain(step.memory.charge, first.charge),
        )
        for step in report.steps
    ]
    print()
    print_table(("", "TOOK", "GUEST ON RAM", "HOST AVAILABLE", "CGROUP CHARGE"), rows, right=(1, 2, 3, 4))
    out, back = report.status, report.faults
    stopped = f"the longest pause {out['PauseUs']} us"
    print(f"\nswap-out: {out['SwapTimeMs']} ms, {stopped}; {mib(out['StoredBytes'])} stored")
    spread = f"median {back['FaultP50Us']} us, 99th percentile {back['FaultP99Us']} us"
    print(f"faults: {back['FaultCount']}, {spread}")
    print(f"checked: {mib(report.checked_bytes)} by {_DEVICES + 1} processes\nevery byte verified")


def _gain(value: int | None, first: int | None) -> str:
    if value is None or first is None:
        return "-"
    return f"{(value - first) / (1 << 20):+.1f} MiB" if value != first else mib(value)


def _as_json(report: _Report) -> dict[str, Any]:
    return {
        "Steps": [
            {
                "Step": step.name,
                "TookMs": round(step.took_s * 1000),
                "GuestBytes": step.memory.guest,
                "AvailableBytes": step.memory.available,
                "ChargeBytes": step.memory.charge,
            }
            for step in report.steps
        ],
        "AfterSwapOut": report.status,
        "AfterWakeUp": report.faults,
        "CheckedBytes": report.checked_bytes,
        "WrongBytes": 0,
    }
