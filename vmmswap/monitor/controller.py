# SPDX-License-Identifier: GPL-2.0-or-later
"""Passes what the bus asks of a monitor on to its VM, if it serves one now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vmmswap.errors import NoSuchVMError
from vmmswap.monitor.guard import guarded
from vmmswap.monitor.served import ServedVm
from vmmswap.monitor.settings import Row, Settings
from vmmswap.status import Status


class Controller:
    """A VmControl. `served` is None until a VM has registered, and again after its end.
    exit_without_vm(reason): Exit was called while no VM is served.
    """

    def __init__(self, name: str, settings: Settings, exit_without_vm: Callable[[str], None]) -> None:
        self.name = name
        self._settings = settings
        self.served: ServedVm | None = None
        self._exit_without_vm = exit_without_vm
        self._listeners: list[Callable[[Status], None]] = []

    @property
    def owner_uid(self) -> int:
        return self.served.vm.manifest.uid if self.served else 0

    def status(self) -> Status:
        return self.served.status() if self.served else Status(name=self.name)

    async def configuration(self) -> list[Row]:
        return await asyncio.to_thread(self._settings.rows)

    async def refresh(self) -> None:
        if self.served:
            await self.served.orders.refresh()

    async def enable(self) -> None:
        served = self._registered()
        await served.writes.ready()
        await served.orders.enable()

    async def disable(self) -> None:
        await self._registered().orders.disable()

    async def trim(self) -> None:
        await self._registered().orders.trim()

    async def wake(self) -> None:
        self._registered().orders.wake()

    async def flush(self) -> None:
        served = self._registered()
        await served.writes.ready()
        served.writes.check_flush()
        served.orders.flush()

    async def start_page_fault_logging(self) -> None:
        await self._registered().start_page_fault_logging()

    async def stop_page_fault_logging(self) -> None:
        if self.served:
            await self.served.stop_page_fault_logging()

    async def exit(self) -> None:
        if self.served:
            await self.served.orders.exit()
        else:
            self._exit_without_vm("Exit was called")

    def subscribe(self, listener: Callable[[Status], None]) -> None:
        self._listeners.append(listener)

    def changed(self) -> None:
        """Report the status to all who have subscribed."""
        with guarded("a change of the VM's state is not reported"):
            status = self.status()
            for listener in list(self._listeners):
                with guarded("a change of the VM's state is not signalled to all"):
                    listener(status)

    def _registered(self) -> ServedVm:
        if self.served is None:
            raise NoSuchVMError(f"no VMM has handed its memory over to {self.name} yet")
        return self.served
