# SPDX-License-Identifier: GPL-2.0-or-later
"""A client's connection to the bus: unlike a service's it ends when the bus does."""

from __future__ import annotations

import asyncio

from vmmswap.bus.connection import Connection
from vmmswap.bus.transport import BusUnreachableError


class ClientConnection(Connection):
    """A Connection that does not come back. `ended` is set when the bus goes away; calls then raise
    BusUnreachableError.
    """

    def __init__(self, address: str | None = None) -> None:
        super().__init__(address)
        self.ended = asyncio.Event()

    async def connect(self) -> None:
        """Connect, in place of `start`; BusUnreachableError if there is no bus."""
        await self._connect()
        self._supervisor = asyncio.create_task(self._wait_for_end(), name="bus connection")

    async def _wait_for_end(self) -> None:
        if self._reader:
            await asyncio.wait([self._reader])
        await self._disconnect(BusUnreachableError(f"the message bus at {self.address} went away"))
        self.ended.set()
