# SPDX-License-Identifier: GPL-2.0-or-later
"""Many small VMs on one host: monitors without a service manager, whose keepers become their successors.

with ManyVms(bus, directory, 40) as vms:
    vms.call("Enable")          # of all at once
    vms.wait_state("Active")
    vms.kill_monitors()
    vms.verify()
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.bus import PrivateBus
from tests.support.guest import Guest
from tests.support.monitor import DEADLINE_S, Monitor
from tests.support.restarts import is_alive, keepers
from vmmswap.bus.client import ClientConnection
from vmmswap.bus.connection import Match
from vmmswap.bus.dbus import Message, plain
from vmmswap.names import BUS_NAME, HOST_INTERFACE, HOST_PATH, MANAGER_INTERFACE, object_path_of

_AT_ONCE = 8  # starting: more would only wait for each other
_CALLS_AT_ONCE = 60  # of the 64 that vmmswapd lets one client wait for


class ManyVms:
    """The running VMs, vm0 and so on, and what vmmswapd says of them. Leaving the `with` block ends all."""

    def __init__(self, bus: PrivateBus, directory: Path, count: int, size: str = "2M", **env: str) -> None:
        self._bus = bus
        self.turns = directory / "turns"
        self.turns.mkdir()
        config = directory / "vmmswap.conf"
        config.touch()
        self.config = config
        self.monitors = []
        self.guests = []
        for number in range(count):
            own = directory / f"vm{number}"
            own.mkdir()
            monitor = Monitor(
                f"vm{number}",
                bus,
                own,
                "--debug",
                "--config",
                str(config),
                env={"NOTIFY_SOCKET": "", "RUNTIME_DIRECTORY": str(self.turns), **env},
            )
            self.monitors.append(monitor)
            self.guests.append(Guest([size], socket=monitor.socket, workers=1, seed=number))
        self._parts = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as parts, ThreadPoolExecutor(_AT_ONCE) as threads:
            for monitor, guest in zip(self.monitors, self.guests, strict=True):
                parts.callback(self._end, monitor)
                parts.callback(guest.close)
            list(threads.map(self._start, self.monitors, self.guests))
            self._parts = parts.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts.close()

    def __len__(self) -> int:
        return len(self.monitors)

    @property
    def names(self) -> list[str]:
        return [monitor.name for monitor in self.monitors]

    def kill_monitors(self) -> None:
        """All at once. Their keepers start the next ones."""
        for monitor in self.monitors:
            assert monitor.process
            monitor.process.send_signal(signal.SIGKILL)
        for monitor in self.monitors:
            monitor.kill()

    def wrong_bytes(self, pages: str = "") -> int:
        """Of all guests, each of which reads those pages, all if none are named: "first=N pages=N"."""
        jobs = [guest.start(f"verify {pages}") for guest in self.guests]
        return sum(job.wait().wrong_bytes for job in jobs)

    def _start(self, monitor: Monitor, guest: Guest) -> None:
        monitor.start()
        monitor.until(monitor.socket.exists, "the monitor to listen")
        guest.start_program()
        guest.wait_ready()
        guest.fill()

    def _end(self, monitor: Monitor) -> None:
        """Keepers first go on in place of a monitor that is killed."""
        if monitor.process is None:
            return
        while living := [pid for pid in [monitor.pid, *keepers(monitor)] if is_alive(monitor, pid)]:
            for pid in reversed(living):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            monitor.process.poll()
        monitor.kill()


class HostClient:
    """A client of vmmswapd that hears all its signals. Everything at once, on one connection."""

    def __init__(self, bus: PrivateBus) -> None:
        self.connection = ClientConnection(bus.address)
        self.changes: dict[str, list[dict[str, Any]]] = {}  # by path: what StatusChanged said

    async def __aenter__(self) -> Self:
        await self.connection.connect()
        daemon = await self.connection.owner_of(BUS_NAME)
        match = Match(MANAGER_INTERFACE, "StatusChanged", sender=daemon)
        await self.connection.subscribe(match, self._changed)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.connection.close()

    async def vms(self) -> dict[str, str]:
        """State by name."""
        [rows] = await self._ask(HOST_PATH, HOST_INTERFACE, "ListVMs")
        return {name: state for name, _path, state in rows}

    async def status(self, name: str) -> dict[str, Any]:
        [values] = await self._ask(object_path_of(name), MANAGER_INTERFACE, "Status")
        found = plain(values)
        assert isinstance(found, dict)
        return found

    async def call_all(self, names: list[str], member: str) -> None:
        """Of all at once, as far as one client may."""
        slots = asyncio.Semaphore(_CALLS_AT_ONCE)

        async def call(name: str) -> None:
            async with slots:
                await self._ask(object_path_of(name), MANAGER_INTERFACE, member)

        await asyncio.gather(*map(call, names))

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        """condition: a coroutine function, or of what is known here."""
        end = time.monotonic() + DEADLINE_S
        while True:
            found = condition()
            if await found if asyncio.iscoroutine(found) else found:
                return
            assert time.monotonic() < end, f"waited in vain for {what}"
            await asyncio.sleep(0.25)

    def last_states(self) -> dict[str, str]:
        """State by path, as the last signal said."""
        return {path: changes[-1]["State"] for path, changes in self.changes.items()}

    def _changed(self, message: Message) -> None:
        self.changes.setdefault(message.path, []).append(plain(message.body[0]))

    async def _ask(self, path: str, interface: str, member: str) -> list[Any]:
        return await self.connection.call(BUS_NAME, path, interface, member, timeout_s=DEADLINE_S)
