# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts one monitor together: hand-off socket, the VM that comes through it, bus, service manager."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from vmmswap import log
from vmmswap.attach.options import Options
from vmmswap.bus.connection import Connection
from vmmswap.bus.manager import publish
from vmmswap.errors import VmmswapError
from vmmswap.handoff.receiver import Limits
from vmmswap.handoff.requests import Memory
from vmmswap.handoff.server import HandoffServer
from vmmswap.monitor import service, signals
from vmmswap.monitor.controller import Controller
from vmmswap.monitor.guard import guarded
from vmmswap.monitor.ownership import Ownership
from vmmswap.monitor.postponed import Postponed
from vmmswap.monitor.recovery import Found
from vmmswap.monitor.registration import Registration
from vmmswap.monitor.served import ServedVm
from vmmswap.monitor.setup import Setup
from vmmswap.monitor.surroundings import Surroundings
from vmmswap.monitor.tracing import PageFaultLog, sink_kinds
from vmmswap.monitor.vm import Vm
from vmmswap.monitor.write_budget import Place
from vmmswap.notify import feed_watchdog

_log = logging.getLogger("vmmswap.monitor")

EXIT_RESTART = 75  # EX_TEMPFAIL: exited with memory out, for a successor

_CLOSING_S = 60.0
_THREADS = 32  # some may wait for a VMM that holds its own locks


class Monitor:
    """The Place for one VM. run() returns the exit status."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._store = setup.store
        self._controller = Controller(setup.name, setup.settings, self._exit_without_vm)
        self._controller.subscribe(lambda _status: self._say_status())
        self._ownership = Ownership(setup.name, setup.config.owner, setup.listener)
        self._postponed = Postponed()
        self._registration = Registration(setup, self._ownership, self._store, self, self._postponed)
        self._around = Surroundings(
            setup.settings,
            PageFaultLog(sink_kinds(setup.config.page_fault_log, journal=setup.journal), setup.log_dir),
            Place(setup.state_dir / f"{setup.name}.written", setup.swap_dir),
            barrier=self._store.try_barrier,
            on_change=self._controller.changed,
            on_end=lambda: self._end(0),
        )
        self._ended: asyncio.Future[int] | None = None
        self._closed: asyncio.Future[None]  # the last VM, if there was one
        self._stopping: asyncio.Task[None] | None = None
        self._logging: asyncio.Task[None] | None = None  # begins again
        self._reloading: asyncio.Task[None] | None = None
        self._oom_victim = service.OomVictim()
        self.has_served = False  # a VM, now or before

    async def run(self) -> int:
        """Serve until the VM's end, or until told to stop. Raises VmmswapError if we cannot start."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._closed = loop.create_future()
        self._closed.set_result(None)
        loop.set_default_executor(ThreadPoolExecutor(_THREADS))
        for number, action in self._signals().items():
            loop.add_signal_handler(number, action)
        signals.release()
        service.manager().start()
        log.start()
        tasks = [loop.create_task(feed_watchdog(service.manager()), name="watchdog")]
        found = self._setup.found
        patience_s = self._setup.config.handoff_timeout_s
        limits = Limits(silence_s=patience_s, message_s=patience_s, reply_s=patience_s)
        if found is None:
            await self._registration.register_kept(self._setup.kept)
        has_vm = found is not None or self.served is not None
        server = HandoffServer(
            self._registration,
            limits,
            is_registered=has_vm or self._setup.attach is not None,
            owner_uid=self._ownership.owner_uid,
        )
        if not has_vm:
            self._oom_victim.first()
        if found is not None:
            await self._take_over(server, found)
        elif self._setup.attach is not None:
            await self._registration.attach_to(
                self._setup.attach, self._setup.attach_options or Options(), qmp=self._setup.attach_qmp
            )
        if self._setup.starts_on_demand and self._setup.config.idle_exit_s:
            tasks.append(loop.create_task(self._exit_when_idle(server), name="idle exit"))
        connection: Connection | None = None
        try:
            if self._closed.done() and not self._ended.done():
                try:
                    connection = await publish(self._controller, self._setup.bus, required=not has_vm)
                except BaseException:
                    await self._undo_attach()
                    raise
            service.notify("READY=1")
            self._setup.turn.release()
            self._say_status()
            if self._setup.listener is not None:
                tasks.append(loop.create_task(server.serve(self._setup.listener), name="hand-off"))
            return await self._ended
        finally:
            service.notify("STOPPING=1")
            for task in tasks:
                task.cancel()
            await server.close()
            if connection is not None:
                await connection.close()
            await self._around.page_fault_log.written()
            await self._store.try_barrier()  # systemd takes nothing from a process that is gone

    async def _undo_attach(self) -> None:
        """The monitor cannot run: a VM that nobody could give orders for must not be left to its keeper."""
        if self.served is not None and self._setup.attach is not None:
            await self.served.detach()
            self.has_served = False  # whoever starts it again would attach once more

    async def _exit_when_idle(self, server: HandoffServer) -> None:
        """Exit after a whole period without a VM and without a connection."""
        accepted = -1
        while accepted != server.accepted or not server.is_idle or self.served is not None:
            accepted = server.accepted
            await asyncio.sleep(self._setup.config.idle_exit_s)
        server.stop_accepting()
        _log.info("no VM for %g s: ending until somebody connects", self._setup.config.idle_exit_s)
        self._finish(0)

    # The VM

    @property
    def served(self) -> ServedVm | None:
        return self._controller.served

    @property
    def is_ending(self) -> bool:
        return self._stopping is not None

    def serve(self, vm: Vm, *, error: VmmswapError | None = None) -> ServedVm:
        """Serve the VM from now on. error: why its state is Failed."""
        self.has_served = True
        self._oom_victim.last()
        served = self._controller.served = ServedVm(vm, self._around, error=error)
        self._controller.changed()
        return served

    def forget(self) -> asyncio.Future[None]:
        """Close the VM, if there is one. The task is done when the VM is closed."""
        if (served := self._controller.served) is not None:
            self._closed = served.close()
            self._controller.served = None
            self._controller.changed()
        return self._closed

    async def _take_over(self, server: HandoffServer, found: Found) -> None:
        """Resume what a predecessor did besides serving the VM, however long that takes."""
        starting = asyncio.get_running_loop().create_task(service.extend_time(), name="start")
        try:
            with self._postponed.until_served():
                await self._resume(server, found)
        finally:
            starting.cancel()
            service.ask_for_time()  # for the bus

    async def _resume(self, server: HandoffServer, found: Found) -> None:
        served = self.serve(found.vm, error=found.error)
        is_alive = await served.processes.is_vmm_alive()
        if self._controller.served is not served:
            return  # it has ended meanwhile
        if not is_alive:
            served.vmm_gone()
            return
        if found.connection is not None:
            server.adopt(found.connection, _memory_of(found.vm))
        if found.vm.manifest.logging:
            self._logging = asyncio.get_running_loop().create_task(_resume_logging(served), name="logging")
        if found.vm.manifest.releasing:
            served.orders.release("the VMM has closed its connection", must=True)
        elif not found.error:
            await served.writes.ready()
            if self._controller.served is served:
                served.orders.resume(found.last_job)

    def _exit_without_vm(self, _reason: str) -> None:
        _log.info("no VM came: ending")
        self._end(0)

    def _end(self, status: int) -> None:
        """Free all and end."""
        self.forget().add_done_callback(lambda _: self._finish(status))
        asyncio.get_running_loop().call_later(_CLOSING_S, self._finish, status)

    def _finish(self, status: int) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(status)

    # The service manager

    def _signals(self) -> dict[signal.Signals, Callable[[], None]]:
        return {
            **dict.fromkeys(signals.STOP, self._stop),
            signals.RESTART: self._restart,
            signals.RELOAD: self._reload,
        }

    def _reload(self) -> None:
        self._reloading = asyncio.get_running_loop().create_task(self._read_again(), name="reload")

    async def _read_again(self) -> None:
        settings = self._setup.settings
        if await asyncio.to_thread(settings.reload) and self.served is not None:
            with guarded("a successor would use the previous configuration"):
                self.served.vm.change(config=settings.current.to_json())

    def _stop(self) -> None:
        """Swap all memory in first: a stop never takes memory away from a guest."""
        service.ask_for_time()  # first of all: the limit may be short, and the loop busy
        if self._postponed.postpone(self._stop, is_first=True) or self._stopping is not None:
            return
        self._stopping = asyncio.get_running_loop().create_task(service.extend_time(), name="stop")
        if self.served is None:
            self._end(0)
            return
        _log.info("told to stop: all memory is swapped in first")
        service.notify("STOPPING=1")
        self.served.orders.release("the monitor was told to stop", must=True)

    def _restart(self) -> None:
        if self._postponed.postpone(self._restart, is_first=False):
            return
        if not self._store.available:
            _log.warning(
                "no service manager keeps the VM's fds: memory is swapped in before the monitor ends"
            )
            self._stop()
            return
        if self.served is None:
            self._end(0)
            return
        _log.info("told to restart: memory stays where it is")
        self.served.flush()
        self._finish(EXIT_RESTART)  # until we exit, faults and forks are served

    def _say_status(self) -> None:
        status = self._controller.status()
        if self.served is None:
            text = "waiting for a VMM"
        else:
            text = f"{status.state} {status.operation}".strip()
            text += (
                f": {status.swap_pages} pages out, {status.resident_pages} of {status.total_pages} resident"
            )
            text += f"; limited by {status.limited_by}" if status.limited_by else ""
            text += f"; {status.error}" if status.error else ""
        service.status(f"stopping: {text}" if self._stopping else text)


async def _resume_logging(served: ServedVm) -> None:
    with guarded("page faults are not logged any more"):
        await served.start_page_fault_logging()


def _memory_of(vm: Vm) -> Memory:
    """What the hand-off's session must know of the VM."""
    return Memory(vm.vmm.pid, vm.handoff_regions(), tuple(vm.files))
