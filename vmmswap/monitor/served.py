# SPDX-License-Identifier: GPL-2.0-or-later
"""A served VM: everything that is done for it, made together and closed together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace

from vmmswap import message_ids
from vmmswap.errors import NotSupportedError, VmmswapError
from vmmswap.log import fields
from vmmswap.monitor.events import EventHandler, EventPump
from vmmswap.monitor.glance import Glance
from vmmswap.monitor.guard import guarded
from vmmswap.monitor.mappers.lookout import Lookout, Watcher
from vmmswap.monitor.mappers.private import PrivateWatch
from vmmswap.monitor.mappers.processes import Processes
from vmmswap.monitor.mappers.succession import Succession
from vmmswap.monitor.operations.orders import Orders
from vmmswap.monitor.operations.report import stored_on
from vmmswap.monitor.surroundings import Surroundings
from vmmswap.monitor.vm import Vm
from vmmswap.monitor.write_budget import WriteBudget
from vmmswap.status import Status

_log = logging.getLogger("vmmswap.monitor")


class ServedVm:
    """One registered VM, from its first page fault until close(). error: why its state is Failed."""

    def __init__(self, vm: Vm, around: Surroundings, *, error: VmmswapError | None = None) -> None:
        self.vm = vm
        self._around = around
        self._swap_file_system = "" if vm.backing.source_is_store else vm.engine.store_file_system
        self._detaching: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._stopping_log: asyncio.Task[None] | None = None
        with contextlib.ExitStack() as parts:  # closed in reverse order
            self.processes = Processes(vm, self.vmm_gone, self._exposed, self._unserved)
            parts.callback(self.processes.close)
            self.writes = WriteBudget(vm.engine, vm.pulse, around.ledger, lambda: around.config)
            parts.callback(self.writes.close)
            vm.count_in_process()
            self._watch = self._watch_mappers()
            parts.callback(self._watch.close)
            self.orders = Orders(vm, around, self._watch, self._released, error=error)
            parts.callback(self.orders.close)
            if not vm.manifest.attached:
                vm.pulse.glance = Glance(vm, self.orders.glance_at_memory).prepare
            parts.callback(around.page_fault_log.stop)
            self._succession = Succession(vm, self._nobody_has_it, self._bring_back)
            parts.callback(self._succession.close)
            handler = EventHandler(vm, self.processes, self.orders, around.on_change)
            self._events = EventPump(vm.engine, handler, handler.flush)
            parts.callback(self._events.stop)
            self._events.start()
            self._parts = parts.pop_all()

    def close(self) -> asyncio.Task[None]:
        """Done once all is closed. This takes longer for a larger VM, and waits for the disk."""
        if self._closing is None:
            with guarded("not all that was done for the VM is closed"):
                self._parts.close()
            self.vm.retire()
            self._closing = asyncio.get_running_loop().create_task(self._close(), name="closing")
        return self._closing

    async def _close(self) -> None:
        await self.vm.close()
        await asyncio.to_thread(self.writes.save)

    def status(self) -> Status:
        status = replace(self.orders.status(), written_today_bytes=self.writes.written_today())
        return stored_on(status, self._swap_file_system)

    async def start_page_fault_logging(self) -> None:
        await self._around.page_fault_log.start(
            self.vm, self._around.config.disk_keep_free, self._page_fault_log_failed
        )
        if self._closing is None and not self.vm.manifest.logging:
            self.vm.change(logging=True)
            self._around.on_change()

    def _page_fault_log_failed(self) -> None:
        loop = asyncio.get_running_loop()
        self._stopping_log = loop.create_task(self._stop_failed_log(), name="page-fault log")

    async def _stop_failed_log(self) -> None:
        """Its file cannot be written, which it has said: nobody is to think that page faults are logged."""
        with guarded("Status says that page faults are logged, and they are not"):
            await self.stop_page_fault_logging()

    async def stop_page_fault_logging(self) -> None:
        if not self._around.page_fault_log.is_on:
            return
        await self._around.page_fault_log.finish()
        if self._closing is None:
            self.vm.change(logging=False)
            self._around.on_change()

    def take_events(self) -> None:
        """Handle the engine's events so far."""
        self._events.take()

    def flush(self) -> None:
        """Write down what only this process knows: its successor is about to be started."""
        self._around.page_fault_log.stop()
        self._events.flush()

    def detach(self) -> asyncio.Task[None]:
        """Remove from an attached VM what was put into it. All of its memory is in. After that the VM has
        ended here.
        """
        if self._detaching is None:
            self._detaching = asyncio.get_running_loop().create_task(self._detach(), name="detach")
        return self._detaching

    def vmm_gone(self) -> None:
        """The VMM has ended, or has called exec. May be called again."""
        self.vm.vmm.has_gone = True
        self._succession.begin()

    # Inside

    def _watch_mappers(self) -> Watcher:
        if self.vm.manifest.attached and self.vm.backing.vmm_moves:
            from vmmswap.monitor.mappers.attached_private import AttachedPrivateWatch  # noqa: PLC0415  as below

            return AttachedPrivateWatch(self.vm, self.processes, self._around.barrier)
        if self.vm.manifest.attached:
            from vmmswap.monitor.mappers import attached  # noqa: PLC0415  only attached VMs need it

            return attached.Watch(self.vm, self.processes, self._around.barrier, self._unserved)
        if self.vm.backing.vmm_moves:
            return PrivateWatch(self.vm, self.processes)
        if not self.vm.backing.others_may_map:
            return Watcher(self.processes)
        return Lookout(self.vm, self.processes, self._unserved)

    def _unserved(self, error: VmmswapError) -> None:
        self.orders.bring_back(error)

    def _exposed(self, error: NotSupportedError) -> None:
        """Swap all in: better no memory gained than a wrong byte."""
        self.orders.bring_back(error, message_ids.HUGE_PAGES)

    def _nobody_has_it(self) -> None:
        _log.info("the VMM has ended: all is freed", extra=fields("", message_ids.VM_GONE))
        self._around.on_end()

    def _bring_back(self, who: str) -> None:
        _log.warning(
            "the VMM has ended, or has called exec, and %s: all memory is swapped in, then freed here", who
        )
        self.orders.release("the VMM has ended", must=True)

    def _released(self, reason: str) -> None:
        if self.vm.manifest.attached:
            self.detach()
            return
        _log.info("the VM is released: %s", reason, extra=fields("", message_ids.VM_GONE))
        self._around.on_end()

    async def _detach(self) -> None:
        from vmmswap.monitor.mappers import attached  # noqa: PLC0415  only attached VMs need it

        await self._watch.stop()
        left = await attached.detach(self.vm)
        if self._closing is None:
            how = f"an idle userfaultfd stays in {', '.join(left)}" if left else "the VMM is as it was"
            _log.info("detached: %s", how, extra=fields("", message_ids.VM_GONE))
            self._around.on_end()
