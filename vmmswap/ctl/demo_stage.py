# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's processes: a private bus, a monitor, a guest. All end with the stage, come what may."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from vmmswap.ctl.failure import CtlError, ExitStatus, one_line

NAME = "demo"
_END_S = 60.0
_POLITE = ("dbus-daemon", "vmmswap-monitor")  # end when asked to
_LINE_LIMIT_BYTES = 1 << 20  # a guest's report on all its threads is one line

_BUS_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <auth>EXTERNAL</auth>
  <listen>unix:path={path}</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="false"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


class Stage:
    """What runs on it, and where. `folder` is for sockets and logs, `swap_dir` for stored pages."""

    def __init__(self, folder: Path, swap_dir: Path) -> None:
        self.folder = folder
        self.swap_dir = swap_dir
        self.bus_address = f"unix:path={folder}/bus"
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def start_bus(self) -> None:
        """Start a message bus of our own and wait until it answers."""
        config = self.folder / "bus.conf"
        config.write_text(_BUS_CONFIG.format(path=self.folder / "bus"), encoding="utf-8")
        flags = ("--nofork", "--nopidfile", "--nosyslog", "--print-address=1")
        bus = await self._spawn("dbus-daemon", f"--config-file={config}", *flags)
        assert bus.stdout is not None  # noqa: S101  _spawn gives it a pipe
        if not await bus.stdout.readline():
            await bus.wait()
            raise await self._ended("dbus-daemon", bus)

    async def start_monitor(self) -> None:
        """Start the monitor of a VM called NAME; the guest waits until it listens."""
        await self._spawn(
            *(_own_program("vmmswap-monitor"), NAME, "--listen", str(self.folder / "vm.sock")),
            *("--swap-dir", str(self.swap_dir), "--bus", self.bus_address),
        )

    async def start_guest(self, regions_mib: list[int]) -> Guest:
        """Start the guest; it hands its memory over by itself.

        However long the monitor takes to listen: if it ends first, guard() says so.
        """
        regions = [word for mib in regions_mib for word in ("--region", f"{mib}M")]
        process = await self._spawn(
            guest_program(),
            *regions,
            "--socket",
            str(self.folder / "vm.sock"),
            "--pins",
            "no",
            "--tries",
            "1000000",
        )
        return Guest(process)

    async def guard(self, play: asyncio.Task[None]) -> None:
        """Await the play; CtlError if one of the processes ends before it does."""
        ends = {
            asyncio.create_task(process.wait()): (program, process)
            for program, process in self._processes.items()
        }
        try:
            done, _ = await asyncio.wait([play, *ends], return_when=asyncio.FIRST_COMPLETED)
            if play in done:
                return await play
            raise await self._ended(*next(ended for task, ended in ends.items() if task in done))
        finally:
            for task in (play, *ends):
                task.cancel()
            await asyncio.gather(play, *ends, return_exceptions=True)

    async def end_guest(self, guest: Guest) -> None:
        """End the guest politely; its monitor must then end by itself, without complaint."""
        guest.close()
        for program, process in self._processes.items():
            if program == "dbus-daemon":
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _END_S)
            if process.returncode != 0:
                raise await self._ended(program, process)

    async def clear(self) -> None:
        """End what still runs. The guest is killed first: its memory is not needed then, its monitor ends."""
        for program, process in reversed(self._processes.items()):
            numbers = (signal.SIGTERM, signal.SIGKILL) if program in _POLITE else (signal.SIGKILL,)
            for number in numbers:
                if process.returncode is not None:
                    break
                with contextlib.suppress(ProcessLookupError, TimeoutError):
                    os.kill(process.pid, number)
                    await asyncio.wait_for(process.wait(), _END_S)

    async def _spawn(self, program: str, *args: str) -> asyncio.subprocess.Process:
        """Start a program that dies with us, in a session of its own: Ctrl-C is ours alone to handle."""
        name = Path(program).name
        if not shutil.which(program):
            raise CtlError(ExitStatus.FAILED, f"the demo needs {name}, which is not installed")
        with self._log(name).open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", "--", program, *args),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                limit=_LINE_LIMIT_BYTES,
            )
        self._processes[name] = process
        return process

    async def _ended(self, program: str, process: asyncio.subprocess.Process) -> CtlError:
        lines = self._log(program).read_text(encoding="utf-8", errors="replace").splitlines()
        said = one_line(" ".join(lines[-1:])) or "it said nothing"
        how = "does not end" if process.returncode is None else f"ended with status {process.returncode}"
        return CtlError(ExitStatus.FAILED, f"{program} {how}: {said}")

    def _log(self, program: str) -> Path:
        return self.folder / f"{program}.log"


class Guest:
    """Orders to a vmmswap-guest, and what it answers. `vmmswap-guest --help` has the orders."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.pid = process.pid
        self._process = process
        self._orders = 0

    async def ready(self) -> None:
        """Wait until the guest's memory is handed over. CtlError, with the monitor's words, if refused."""
        async for message in self._messages():
            handoff = message.get("handoff", {}) if message.get("event") == "handoff" else {}
            if handoff.get("state") == "ready":
                return
            if handoff.get("state") == "refused":
                raise CtlError(ExitStatus.FAILED, f"the monitor refused the guest: {handoff['message']}")

    async def order(self, line: str) -> dict[str, Any]:
        """Give an order and return its reply."""
        assert self._process.stdin is not None  # noqa: S101  Stage gives it a pipe
        self._process.stdin.write(line.encode() + b"\n")
        self._orders += 1
        return await self._answer(line, "reply", self._orders)

    async def job(self, line: str) -> dict[str, Any]:
        """Give an order that takes time, and return how it ended."""
        return await self._answer(line, "job", (await self.order(line))["job"], event="done")

    async def operations(self, count: int) -> None:
        """Wait until the guest's workers have done so many more reads and writes."""
        status = await self.order("status")
        goal = status["reads"] + status["writes"] + count
        while status["reads"] + status["writes"] < goal:  # each look is a round trip to the guest
            status = await self.order("status")

    def close(self) -> None:
        """Ask the guest to end: the end of its orders does."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def _answer(self, line: str, key: str, number: int, event: str | None = None) -> dict[str, Any]:
        async for message in self._messages():
            if message.get(key) == number and message.get("event") == event:
                if not message["ok"]:
                    raise CtlError(ExitStatus.FAILED, f"the guest cannot do {line!r}: {message['error']}")
                return message
        raise AssertionError  # _messages does not end

    async def _messages(self) -> AsyncIterator[dict[str, Any]]:
        assert self._process.stdout is not None  # noqa: S101  Stage gives it a pipe
        while line := await self._process.stdout.readline():
            yield json.loads(line)
        await asyncio.get_running_loop().create_future()  # it ended: Stage.guard tells how, and cancels us


def guest_program() -> str:
    """The guest: $VMMSWAP_GUEST, else as installed, else as built in the source tree."""
    if given := os.environ.get("VMMSWAP_GUEST"):
        return given
    installed = [Path(prefix) / "libexec/vmmswap" for prefix in (sys.prefix, "/usr/local", "/usr")]
    for folder in (*installed, Path(__file__).resolve().parents[2] / "build"):
        if (folder / "vmmswap-guest").exists():
            return str(folder / "vmmswap-guest")
    raise CtlError(
        ExitStatus.FAILED,
        "vmmswap-guest is not built: `make -C guest` in the source tree, or set VMMSWAP_GUEST",
    )


def _own_program(name: str) -> str:
    """A program of ours beside this one, else on PATH."""
    beside = Path(sys.argv[0]).resolve().with_name(name), Path(sys.executable).with_name(name)
    return next((str(path) for path in beside if path.exists()), name)
