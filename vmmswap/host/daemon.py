# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswapd's life: on the bus while it is of use, away when idle, and honest to systemd about both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal

from vmmswap.bus.authority import Authority
from vmmswap.bus.connection import Connection
from vmmswap.errors import VmmswapError
from vmmswap.host.host import HostObject
from vmmswap.host.loops import RestartLoops
from vmmswap.host.registry import Registry
from vmmswap.host.units import Units
from vmmswap.names import BUS_NAME
from vmmswap.notify import Notifier, feed_watchdog

log = logging.getLogger(__name__)


class Daemon:
    """The whole of vmmswapd, without its command line."""

    def __init__(self, address: str | None, idle_exit_s: float) -> None:
        self.connection = Connection(address)
        authority = Authority(self.connection)
        self.registry = Registry(self.connection, authority)
        self._units = Units(self.connection)
        self._idle_exit_s = idle_exit_s
        self._loops = RestartLoops(self._units)
        self._stop = asyncio.Event()
        self._manager = Notifier()
        self._host = HostObject(self.connection, self.registry, self._units, authority)
        self.connection.export(self._host)

    async def run(self) -> None:
        """Serve until idle, SIGTERM or SIGINT; BusUnreachableError, NameUnavailableError if it cannot."""
        self._manager.start()
        await self.registry.start()
        await self._units.follow()
        await self.connection.start()
        background = []
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
            await self.connection.own_name(BUS_NAME)
            self._host.sweep()
            background = [
                asyncio.create_task(self._watch_idle()),
                asyncio.create_task(feed_watchdog(self._manager)),
            ]
            self._manager.notify("READY=1")
            await self._stop.wait()
            self._manager.notify("STOPPING=1")
            with contextlib.suppress(VmmswapError):  # without a bus there is nothing to release
                await self.connection.release_name(BUS_NAME)  # what was sent before this is still answered
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self.connection.close()
            self._manager.close()

    async def _watch_idle(self) -> None:
        """Stop after a whole period without a VM, a prepared socket or a call."""
        while self._idle_exit_s > 0 and not self._stop.is_set():
            handled = self.connection.dispatcher.handled
            await asyncio.sleep(self._idle_exit_s)
            if handled == self.connection.dispatcher.handled and await self._is_idle():
                log.info("nothing to do for %g s: exiting until somebody calls", self._idle_exit_s)
                self._stop.set()

    async def _is_idle(self) -> bool:
        if not self.connection.connected or self.registry.vms or self.connection.dispatcher.busy:
            return False
        try:
            return not await self._units.active_sockets()
        except VmmswapError as error:
            log.warning("cannot ask systemd for prepared sockets: %s; staying", error.message)
            return False
