# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap@NAME.socket, through systemd's own bus interface."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from vmmswap.bus.connection import Connection, Match
from vmmswap.bus.dbus import Message
from vmmswap.bus.dispatch import RemoteError
from vmmswap.bus.interface import PROPERTIES_INTERFACE
from vmmswap.errors import NotSupportedError

SYSTEMD = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_ALREADY = "org.freedesktop.systemd1.AlreadySubscribed"
_JOB_TIMEOUT_S = 60.0


class Units:
    """Starts units and waits until they are started."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._jobs: set[asyncio.Queue[Message]] = set()
        self.on_job_removed: Callable[[Message], None] = lambda _message: None

    async def follow(self) -> None:
        """Hear of jobs that end, now and after each reconnect."""
        self._connection.on_connect(self._subscribe)
        await self._connection.subscribe(
            Match(_MANAGER, "JobRemoved", sender=SYSTEMD, path=_PATH), self._job_removed
        )

    async def start(self, unit: str) -> None:
        """Start the unit; NotSupportedError with systemd's reason if that cannot be."""
        await self._do("start", "StartUnit", unit)

    async def stop(self, unit: str) -> None:
        """Stop the unit; NotSupportedError with systemd's reason if that cannot be."""
        await self._do("stop", "StopUnit", unit)

    async def is_active(self, unit: str) -> bool:
        """True if the unit is active, or on its way to or from that; False without systemd."""
        return await self._ask("ListUnitsByNames", "as", [[unit]], _is_row_active)

    async def service(self, unit: str) -> dict[str, Any]:
        """All properties that systemd has of a service."""
        [path] = await self._connection.call(SYSTEMD, _PATH, _MANAGER, "LoadUnit", "s", [unit])
        [values] = await self._connection.call(SYSTEMD, path, PROPERTIES_INTERFACE, "GetAll", "s", [""])
        return {name: value.value for name, value in values.items()}

    async def is_enabled(self, unit: str) -> bool:
        """True if systemd starts the unit by itself; False without systemd."""
        return await self._ask(
            "GetUnitFileState", "s", [unit], lambda state: state in ("enabled", "enabled-runtime")
        )

    async def _do(self, verb: str, method: str, unit: str) -> None:
        owner = await self._connection.owner_of(SYSTEMD)
        if not owner:
            raise NotSupportedError(
                f"cannot {verb} {unit}: systemd is not on this bus. Run vmmswap-monitor --listen instead"
            )
        ended: asyncio.Queue[Message] = asyncio.Queue()
        self._jobs.add(ended)
        try:
            async with asyncio.timeout(_JOB_TIMEOUT_S):
                result = await self._run(method, unit, owner, ended)
        except TimeoutError:
            result = f"timeout after {_JOB_TIMEOUT_S:g} s"
        except RemoteError as error:
            result = error.message
        finally:
            self._jobs.discard(ended)
        if result != "done":
            raise NotSupportedError(
                f"systemd could not {verb} {unit}: {result}. `systemctl status {unit}` has more"
            )

    async def active_sockets(self) -> list[str]:
        """The names of the units vmmswap@*.socket that are active; none without systemd."""
        if not await self._connection.owner_of(SYSTEMD):
            return []
        [rows] = await self._connection.call(
            SYSTEMD, _PATH, _MANAGER, "ListUnitsByPatterns", "asas", [["active"], ["vmmswap@*.socket"]]
        )
        return [row[0] for row in rows]

    async def _ask(
        self, method: str, signature: str, arguments: list[Any], judge: Callable[[Any], bool]
    ) -> bool:
        if not await self._connection.owner_of(SYSTEMD):
            return False
        [answer] = await self._connection.call(SYSTEMD, _PATH, _MANAGER, method, signature, arguments)
        return judge(answer)

    async def _run(self, method: str, unit: str, owner: str, ended: asyncio.Queue[Message]) -> str:
        await self._subscribe()  # once more: systemd may have been executed anew
        [job] = await self._connection.call(SYSTEMD, _PATH, _MANAGER, method, "ss", [unit, "replace"])
        while True:
            message = await ended.get()
            if message.sender == owner and message.body[1] == job:
                return str(message.body[3])

    async def _subscribe(self) -> None:
        """Without systemd there is nothing to hear."""
        if not await self._connection.owner_of(SYSTEMD):
            return
        try:
            await self._connection.call(SYSTEMD, _PATH, _MANAGER, "Subscribe")
        except RemoteError as error:
            if error.error_name != _ALREADY:
                raise

    def _job_removed(self, message: Message) -> None:
        self.on_job_removed(message)
        for queue in self._jobs:
            queue.put_nowait(message)


def _is_row_active(rows: list[list[Any]]) -> bool:
    """rows: name, description, load state, active state and more, of each unit."""
    return any(row[3] not in ("inactive", "failed") for row in rows)
