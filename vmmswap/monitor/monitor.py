# SPDX-License-Identifier: GPL-2.0-or-later
"""One monitor, put together: hand-off socket, the VM that comes through it, bus, service manager."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from vmmswap import log, message_ids
from vmmswap.attach.access import User
from vmmswap.attach.attach import Options, parse_region
from vmmswap.bus.connection import Connection
from vmmswap.bus.manager import publish
from vmmswap.config import Config
from vmmswap.errors import BusyError, InternalError, NotSupportedError, VmmswapError
from vmmswap.handoff import requests
from vmmswap.handoff.fds import file_id, is_alive
from vmmswap.handoff.lane import Lane
from vmmswap.handoff.messages import PAGE_SIZE, Region
from vmmswap.handoff.peer import Peer
from vmmswap.handoff.receiver import Frame, Limits
from vmmswap.handoff.server import HandoffServer
from vmmswap.handoff.session import register_firecracker
from vmmswap.log import fields
from vmmswap.monitor import attached, coverage, fdstore, pending, recovery, service, snapshot
from vmmswap.monitor.controller import Controller
from vmmswap.monitor.events import EventHandler, EventPump
from vmmswap.monitor.fdstore import FdStore
from vmmswap.monitor.guard import guarded
from vmmswap.monitor.keeper import Keeper
from vmmswap.monitor.lookout import Lookout
from vmmswap.monitor.ownership import Ownership
from vmmswap.monitor.processes import Processes, is_vmm_alive
from vmmswap.monitor.succession import Succession
from vmmswap.monitor.vm import NewProcess, NewVm, Vm, register

_log = logging.getLogger("vmmswap.monitor")

EXIT_RESTART = 75  # EX_TEMPFAIL: ended with memory out, for a successor

_CLOSING_S = 60.0
_THREADS = 32  # some may wait for a VMM that holds its own locks


@dataclass(slots=True)
class Setup:
    """What a monitor is started with."""

    name: str
    config: Config
    swap_dir: Path
    log_dir: Path
    bus: str | None
    listener: socket.socket | None
    config_path: Path | None = None  # the configuration to read anew; None: the host's
    kept: dict[str, int] = field(default_factory=dict)  # from the fd store, by name
    fd_store: bool = False
    starts_on_demand: bool = False  # whoever connects starts the next monitor
    journal: bool = False
    keeper: Keeper | None = None
    attach: int | None = None  # the pidfd of a VMM to take over at once
    attach_options: Options = field(default_factory=Options)
    attach_qmp: str | None = None


class Monitor:
    """A HandoffHandler. run() returns the exit status."""

    def __init__(self, setup: Setup) -> None:
        self.name = setup.name
        self._setup = setup
        self._ownership = Ownership(setup.name, setup.config.owner, setup.listener)
        self._store = FdStore(service.manager() if setup.fd_store else None, setup.keeper)
        self._controller = Controller(setup.name, setup.config, journal=setup.journal, log_dir=setup.log_dir)
        self._controller.on_released = self._released
        self._controller.subscribe(lambda _status: self._say_status())
        self._processes: Processes | None = None
        self._events: EventPump | None = None
        self._watch: attached.Watch | None = None  # of an attached VM
        self._lookout: Lookout | None = None  # of one that was handed over
        self._succession: Succession | None = None  # once the VMM has gone
        self._detaching: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[int] | None = None
        self._closed: asyncio.Future[None]  # the last VM, if there was one
        self._stopping: asyncio.Task[None] | None = None
        self._logging: asyncio.Task[None] | None = None  # begins again
        self._oom_victim = service.OomVictim()
        self._is_keeping = False  # a message that is sent only once, while its VM registers
        self._put_off: Callable[[], None] | None = None  # what a signal asked for meanwhile
        self._server: HandoffServer | None = None

    async def run(self) -> int:
        """Serve until the VM's end, or until told to stop. Raises VmmswapError if we cannot start."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._closed = loop.create_future()
        self._closed.set_result(None)
        loop.set_default_executor(ThreadPoolExecutor(_THREADS))
        for number, action in self._signals().items():
            loop.add_signal_handler(number, action)
        service.manager().start()
        log.start()
        tasks = [loop.create_task(service.feed_watchdog(), name="watchdog")]
        recovered = recovery.is_needed(self._setup.kept)
        patience_s = self._setup.config.handoff_timeout_s
        limits = Limits(silence_s=patience_s, message_s=patience_s, reply_s=patience_s)
        if not recovered:
            await self._register_kept()
        has_vm = recovered or self._controller.vm is not None
        self._server = HandoffServer(
            self,
            limits,
            is_registered=has_vm or self._setup.attach is not None,
            owner_uid=self._ownership.owner_uid,
        )
        if not has_vm:
            self._oom_victim.first()
        if self._setup.starts_on_demand and self._setup.config.idle_exit_s:
            tasks.append(loop.create_task(self._exit_when_idle(self._server), name="idle exit"))
        if recovered:
            self._recover(self._server)
        elif self._setup.attach is not None:
            await self._attach(self._setup.attach, self._setup.attach_options, qmp=self._setup.attach_qmp)
        connection: Connection | None = None
        try:
            if self._closed.done() and not self._ended.done():
                try:
                    connection = await publish(self._controller, self._setup.bus, required=not has_vm)
                except BaseException:
                    await self._undo_attach()
                    raise
            service.notify("READY=1")
            self._say_status()
            if self._setup.listener is not None:
                tasks.append(loop.create_task(self._server.serve(self._setup.listener), name="hand-off"))
            return await self._ended
        finally:
            service.notify("STOPPING=1")
            for task in tasks:
                task.cancel()
            await self._server.close()
            if connection is not None:
                await connection.close()
            await self._controller.page_fault_log.written()
            await self._barrier()  # systemd takes nothing from a process that is gone

    async def _exit_when_idle(self, server: HandoffServer) -> None:
        """End after a whole period without a VM and without a connection."""
        accepted = -1
        while accepted != server.accepted or not server.is_idle or self._controller.vm is not None:
            accepted = server.accepted
            await asyncio.sleep(self._setup.config.idle_exit_s)
        server.stop_accepting()
        _log.info("no VM for %g s: ending until somebody connects", self._setup.config.idle_exit_s)
        self._finish(0)

    # The hand-off

    def check_peer(self, peer: Peer) -> None:
        self._ownership.check(peer.uid)

    async def register(self, request: requests.RegisterRequest) -> None:
        vmm = request.process
        await self.register_vm(
            NewVm(
                vmm=_new_process(vmm),
                memfds=request.memfds,
                uid=request.peer.uid,
                pins=request.pins,
                qmp=request.qmp,
                connection=request.connection,
            )
        )

    async def register_vm(self, new: NewVm) -> None:
        """Serve a VM from now on, wherever its fds came from. Returns when it is safe in the fd store."""
        self._check_free()
        new = replace(new, uid=self._owner_of(new.uid))
        vm = register(self.name, new, self._setup.config, self._setup.swap_dir, self._store)
        try:
            if new.snapshot is None:
                await self._must_be_kept()
            else:
                await self._barrier()  # refused, it would hang: it has no other way than us
            vm.engine.start()
            vm.register_dummy(vm.vmm)  # last: from here on fork() waits for us
        except BaseException:
            await vm.close()
            raise
        self._serve(vm)
        total_mib = sum(item.pages for item in vm.manifest.regions) * PAGE_SIZE >> 20
        _log.info(
            "registered: process %s of uid %d, %d MiB in %d regions",
            coverage.name_of(new.vmm.pid),
            new.uid,
            total_mib,
            len(vm.manifest.regions),
            extra=fields("", message_ids.VM_REGISTERED, vmmswap_pid=new.vmm.pid),
        )
        for limit in new.vmm.limits:
            _log.warning("process %d: %s", new.vmm.pid, limit)

    def _owner_of(self, uid: int) -> int:
        """Whose VM it is that this uid hands over."""
        recorded = self._ownership.owner_uid()
        return uid if recorded is None else recorded

    async def _must_be_kept(self) -> None:
        try:
            await self._store.barrier()
        except OSError as error:
            raise InternalError(f"systemd does not confirm what it keeps for us: {error}") from None

    @contextlib.asynccontextmanager
    async def keeping(self, frame: Frame) -> AsyncIterator[None]:
        """If cancelled we are ending: the message is left to a successor."""
        self._is_keeping = True
        pending.keep(frame, self._store)
        try:
            await self._barrier()
            yield
        except asyncio.CancelledError:
            raise
        except BaseException:
            pending.drop(self._store, has_vm=False)
            raise
        else:
            pending.drop(self._store, has_vm=self._controller.vm is not None)
        finally:
            self._is_keeping = False
            put_off, self._put_off = self._put_off, None
            if put_off is not None:
                put_off()

    async def _register_kept(self) -> None:
        """Of what a predecessor left that died while a VM registered, only a kept message is of use."""
        frame = pending.take(self._setup.kept, self._store)
        recovery.forget(self._setup.kept, self._store)
        if frame is None:
            return
        _log.warning("a monitor died while process %d handed its memory over: begun anew", frame.peer.pid)
        with frame:
            try:
                await register_firecracker(frame, self, Lane())
            except (VmmswapError, OSError) as error:
                _log.warning("%s: hand-off refused: %s", self.name, error)
            except Exception:
                _log.exception("%s: hand-off: a bug of vmmswap's, not the VMM's", self.name)
        pending.drop(self._store, has_vm=self._controller.vm is not None)

    async def register_firecracker(self, request: requests.FirecrackerRequest) -> None:
        path = snapshot.configured_file(self.name, self._setup.config_path)
        may_read = partial(self._ownership.check_snapshot, uid=request.peer.uid)
        file = snapshot.open_file(path, request.regions, may_read)
        try:
            _log.info("guest memory comes from SnapshotFile=%s", path)
            await self.register_vm(
                NewVm(
                    vmm=NewProcess(
                        request.peer.pid,
                        request.peer.pidfd,
                        request.uffd,
                        request.regions,
                        limits=request.uffd_info.limits,
                        is_proven=False,
                    ),
                    memfds=(),
                    uid=request.peer.uid,
                    snapshot=file,
                )
            )
        finally:
            os.close(file)

    def served_pid(self, uffd: int) -> int | None:
        return None if self._processes is None else self._processes.pid_of(uffd)

    async def add_process(self, request: requests.AddProcessRequest) -> None:
        await self._check_huge_pages(request.process.pid, request.process.regions)
        self._registered()[1].add(_new_process(request.process))
        await self._barrier()

    async def add_region(self, request: requests.AddRegionRequest) -> None:
        vm, _ = self._registered()
        if request.uffd is not None:
            raise NotSupportedError(
                "fds[0]: further memory is served by the userfaultfd that was registered: leave it out"
            )
        await self._check_huge_pages(vm.vmm.pid, request.regions)
        vm, _ = self._registered()
        if self._events is not None:  # a child that was forked by now does not have the new memory
            self._events.take()
        given_up = {region.memfd for region in request.regions} - vm.memfds.keys()
        reopened = {number: _fd_of(request, vm, number) for number in given_up if number < len(vm.files)}
        vm.add_memory(request.memfds, request.regions, reopened)
        await self._barrier()

    async def _check_huge_pages(self, pid: int, regions: Sequence[Region]) -> None:
        """While memory is out; else Enable does that."""
        vm, processes = self._registered()
        if vm.engine.stats().tracking:
            await processes.check_huge_pages([(pid, region.addr, region.end) for region in regions])

    def _exposed(self, error: NotSupportedError) -> None:
        """Better no memory free than a wrong byte."""
        self._controller.bring_back(error, message_ids.HUGE_PAGES)

    async def remove_region(self, request: requests.RemoveRegionRequest) -> None:
        self._registered()[0].remove_regions(request.regions)

    async def attach(self, request: requests.AttachRequest) -> None:
        self._ownership.check(request.uid)
        user = User(request.uid, request.gid, request.caller_pid)
        options = Options(tuple(map(parse_region, request.regions)), request.force, user)
        await self._attach(request.pidfd, options, pins=request.pins, qmp=request.qmp)

    async def _attach(
        self, pidfd: int, options: Options, *, pins: bool = True, qmp: str | None = None
    ) -> None:
        """Take a running VMM over that knows nothing of us, with all processes that map its memory."""
        self._check_free()
        found = await attached.attach(pidfd, options)
        try:
            await self.register_vm(attached.new_vm(found, pins=pins, qmp=qmp))
            for process in found.processes[1:]:
                try:
                    self._registered()[1].add(attached.new_process(process))
                except VmmswapError:
                    if is_alive(process.pidfd):
                        raise
        except BaseException as error:
            has_ended = isinstance(error, VmmswapError) and not is_alive(found.vmm.pidfd)
            await self._forget_vm()
            await attached.undo(found)
            if has_ended:
                raise NotSupportedError(f"process {found.vmm.pid} has ended") from None
            raise
        found.fds.close()
        await self._barrier()

    async def _undo_attach(self) -> None:
        """The monitor cannot be: a VM that nobody could give orders for must not be left to its keeper."""
        vm = self._controller.vm
        if vm is None or self._setup.attach is None:
            return
        if self._detaching is None:
            self._detaching = asyncio.get_running_loop().create_task(self._detach(vm), name="detach")
        await self._detaching

    async def connection_lost(self, error: VmmswapError | None) -> None:
        self._store.remove(fdstore.CONNECTION)
        vm = self._controller.vm
        if vm is None or error is not None or not is_vmm_alive(vm):
            return  # its pidfd tells of its end
        _log.info("the VMM has closed its connection: its memory is swapped in and it is released")
        vm.change(releasing=True)
        self._controller.release("the VMM has closed its connection", must=True)

    def _check_free(self) -> None:
        if self._controller.vm is not None:
            raise BusyError("a VM is registered here already")
        if self._stopping is not None:
            raise BusyError("this monitor is ending")

    def _registered(self) -> tuple[Vm, Processes]:
        vm = self._controller.vm
        if vm is None or self._processes is None:
            raise BusyError("the VM is gone")
        return vm, self._processes

    async def _barrier(self) -> None:
        try:
            await self._store.barrier()
        except OSError as error:
            _log.error("systemd does not confirm what it keeps for us: %s", error)

    # The VM

    def _serve(self, vm: Vm, *, error: VmmswapError | None = None) -> None:
        self._oom_victim.last()
        self._processes = Processes(vm, self._vmm_gone, self._exposed)
        self._controller.check_before_enable = self._processes.check_covered
        vm.count_in_process()
        if vm.manifest.attached:
            self._watch = attached.Watch(vm, self._processes, self._barrier, self._controller.bring_back)
            self._controller.check_before_enable = self._watch.check_before_enable
            self._controller.check_before_exit = partial(attached.check_before_exit, vm)
        elif not vm.manifest.snapshot:
            self._lookout = Lookout(vm, self._controller.bring_back)
        handler = EventHandler(vm, self._processes, self._controller)
        self._events = EventPump(vm.engine, handler, handler.flush)
        self._events.start()
        self._controller.adopt(vm, error=error)

    def _recover(self, server: HandoffServer) -> None:
        found = recovery.recover(self._setup.kept, self._store, self._setup.config, self._setup.swap_dir)
        self._serve(found.vm, error=found.error)
        if not is_vmm_alive(found.vm):
            self._vmm_gone()
            return
        if found.connection is not None:
            server.adopt(found.connection, recovery.memory_of(found.vm))
        if found.vm.manifest.logging:
            self._logging = asyncio.get_running_loop().create_task(self._resume_logging(), name="logging")
        if found.vm.manifest.releasing:
            self._controller.release("the VMM has closed its connection", must=True)
        elif not found.error:
            self._controller.resume(found.last_job)

    async def _resume_logging(self) -> None:
        with guarded("page faults are not logged any more"):
            await self._controller.start_page_fault_logging()

    def _vmm_gone(self) -> None:
        vm = self._controller.vm
        if vm is None:
            return
        if self._succession is None:
            self._succession = Succession(vm, self._nobody_has_it, self._bring_back)
        self._succession.begin()

    def _nobody_has_it(self) -> None:
        _log.info("the VMM has ended: all is freed", extra=fields("", message_ids.VM_GONE))
        self._end(0)

    def _bring_back(self, who: str) -> None:
        _log.warning(
            "the VMM has ended, or has called exec, and %s: all is brought back, then freed here", who
        )
        self._controller.release("the VMM has ended", must=True)

    def _released(self, reason: str) -> None:
        vm = self._controller.vm
        if vm is not None and vm.manifest.attached:
            if self._detaching is None:
                self._detaching = asyncio.get_running_loop().create_task(self._detach(vm), name="detach")
            return
        _log.info("the VM is released: %s", reason, extra=fields("", message_ids.VM_GONE))
        self._end(0)

    async def _detach(self, vm: Vm) -> None:
        if self._watch is not None:
            await self._watch.stop()
        left = await attached.detach(vm.processes.values(), force=vm.manifest.forced)
        if self._controller.vm is vm:
            how = f"an idle userfaultfd stays in {', '.join(left)}" if left else "the VMM is as it was"
            _log.info("detached: %s", how, extra=fields("", message_ids.VM_GONE))
            self._end(0)

    def _end(self, status: int) -> None:
        """Free all and end."""
        closed = self._forget_vm()
        closed.add_done_callback(lambda _: self._finish(status))
        asyncio.get_running_loop().call_later(_CLOSING_S, self._finish, status)

    def _forget_vm(self) -> asyncio.Future[None]:
        """Done once it is closed, which takes the longer the larger it is, and waits for the disk."""
        vm = self._controller.vm
        if vm is None:
            return self._closed
        if self._events is not None:
            self._events.stop()
            self._events = None
        if self._succession is not None:
            self._succession.close()
            self._succession = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._lookout is not None:
            self._lookout.close()
            self._lookout = None
        if self._processes is not None:
            self._processes.close()
            self._processes = None
        self._controller.drop()
        vm.retire()
        self._closed = asyncio.get_running_loop().create_task(vm.close(), name="closing")
        return self._closed

    def _finish(self, status: int) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(status)

    # The service manager

    def _signals(self) -> dict[signal.Signals, Callable[[], None]]:
        return {signal.SIGTERM: self._stop, signal.SIGINT: self._stop, signal.SIGUSR2: self._restart}

    def _stop(self) -> None:
        """All in first: a stop never takes memory away from a guest."""
        if self._is_keeping:
            self._put_off = self._stop
        if self._is_keeping or self._stopping is not None:
            return
        service.ask_for_time()  # first of all: the limit may be short, and the loop busy
        self._stopping = asyncio.get_running_loop().create_task(service.extend_stop(), name="stop")
        if self._controller.vm is None:
            self._end(0)
            return
        _log.info("told to stop: all memory is swapped in first")
        service.notify("STOPPING=1")
        self._controller.release("the monitor was told to stop", must=True)

    def _restart(self) -> None:
        if self._is_keeping:
            self._put_off = self._put_off or self._restart
            return
        if not self._store.available:
            _log.warning(
                "no service manager keeps the VM's fds: memory is swapped in before the monitor ends"
            )
            self._stop()
            return
        if self._controller.vm is None:
            self._end(0)
            return
        _log.info("told to restart: memory stays where it is")
        self._controller.page_fault_log.stop()
        if self._events is not None:
            self._events.flush()
        self._finish(EXIT_RESTART)  # until we are gone, faults and forks are seen to

    def _say_status(self) -> None:
        status = self._controller.status()
        if self._controller.vm is None:
            text = "waiting for a VMM"
        else:
            text = f"{status.state} {status.operation}".strip()
            text += (
                f": {status.swap_pages} pages out, {status.resident_pages} of {status.total_pages} resident"
            )
            text += f"; {status.error}" if status.error else ""
        service.status(f"stopping: {text}" if self._stopping else text)


def _new_process(process: requests.ProcessMemory) -> NewProcess:
    return NewProcess(
        process.pid,
        process.pidfd,
        process.uffd,
        process.regions,
        process.dummy_page,
        process.limits,
        process.is_proven,
    )


def _fd_of(request: requests.AddRegionRequest, vm: Vm, number: int) -> int:
    """The fd, among those sent, of a file that the VM had before."""
    for fd in request.fds:
        with contextlib.suppress(OSError):
            if file_id(fd) == vm.files[number]:
                return fd
    raise InternalError(f"memfd {number} was not sent")
