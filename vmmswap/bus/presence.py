# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for a caller's sake ends when the caller leaves the bus."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from vmmswap.bus.dbus import Message
from vmmswap.bus.dispatch import DBUS_ERROR, RemoteError

if TYPE_CHECKING:
    from vmmswap.bus.connection import Connection

_T = TypeVar("_T")


class CallerLeftError(RemoteError):
    """Nobody hears the answer any more."""

    def __init__(self, name: str) -> None:
        super().__init__(DBUS_ERROR + "Disconnected", f"{name} has left the bus")


class Presence:
    """Who of those that are waited for has left. The bus is asked to tell only while somebody waits: idle
    monitors sleep through the comings and goings of others.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._gone: dict[str, asyncio.Event] = {}
        self._waiting: Counter[str] = Counter()

    def left(self, message: Message) -> None:
        """Take the bus's word: NameOwnerChanged of a unique name."""
        name, _old, new = message.body
        if not new and name in self._gone:
            self._gone[name].set()

    def all_left(self) -> None:
        """The bus is gone, and everybody with it."""
        for event in self._gone.values():
            event.set()

    async def run(self, name: str, work: Coroutine[Any, Any, _T]) -> _T:
        """Do the work for the owner of this unique name; it is cancelled, and CallerLeftError raised, when he
        leaves.
        """
        task = asyncio.ensure_future(work)
        gone = self._gone.setdefault(name, asyncio.Event())
        self._waiting[name] += 1
        leaving = asyncio.ensure_future(gone.wait())
        try:
            await self._connection.watch_leaving(name)
            await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise CallerLeftError(name)
            return await task
        finally:
            self._connection.stop_watching(name)
            for one in (task, leaving):
                one.cancel()
            await asyncio.gather(task, leaving, return_exceptions=True)
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name], self._gone[name]
