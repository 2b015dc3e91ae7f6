# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes a VM that comes by a hand-off or an attach, and handles what its hand-off says later."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from vmmswap import message_ids
from vmmswap.attach.options import Options
from vmmswap.errors import BusyError, InternalError, NotSupportedError, VmmswapError
from vmmswap.handoff import requests
from vmmswap.handoff.fds import pid_of
from vmmswap.handoff.lane import Lane
from vmmswap.handoff.peer import Peer
from vmmswap.handoff.receiver import Frame
from vmmswap.handoff.region import PAGE_SIZE, Region
from vmmswap.handoff.session import register_firecracker, taken_error
from vmmswap.linux.access import User
from vmmswap.linux.files import file_id
from vmmswap.linux.process import is_alive
from vmmswap.log import fields
from vmmswap.monitor import encryption, recovery, snapshot
from vmmswap.monitor.keep import fdstore, pending
from vmmswap.monitor.keep.fdstore import FdStore
from vmmswap.monitor.mappers import coverage
from vmmswap.monitor.new_vm import NewProcess, NewVm
from vmmswap.monitor.on_thread import made_on_thread
from vmmswap.monitor.ownership import Ownership
from vmmswap.monitor.postponed import Postponed
from vmmswap.monitor.register import create_engine, register
from vmmswap.monitor.served import ServedVm
from vmmswap.monitor.setup import Setup
from vmmswap.monitor.vm import Vm
from vmmswap.reasons import reason_of
from vmmswap.region_text import parse_region

_log = logging.getLogger("vmmswap.monitor")


class Place(Protocol):
    """Where one VM is served at a time."""

    @property
    def served(self) -> ServedVm | None: ...

    @property
    def is_ending(self) -> bool:
        """True if no further VM is accepted."""

    def serve(self, vm: Vm) -> ServedVm: ...

    def forget(self) -> asyncio.Future[None]:
        """Close the VM, if there is one. The task is done when the VM is closed."""


class Registration:
    """A HandoffHandler."""

    def __init__(
        self, setup: Setup, ownership: Ownership, store: FdStore, place: Place, postponed: Postponed
    ) -> None:
        self.name = setup.name
        self._setup = setup
        self._ownership = ownership
        self._store = store
        self._place = place
        self._postponed = postponed

    def occupant(self) -> str:
        served = self._place.served
        return "" if served is None else coverage.name_of(served.vm.vmm.pid)

    def check_peer(self, peer: Peer) -> None:
        self._ownership.check(peer.uid)

    # A VM comes

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
                mover=request.mover,
            )
        )

    async def register_vm(self, new: NewVm) -> ServedVm:
        """Serve a VM from now on, wherever its fds came from. Returns when it is safe in the fd store."""
        self._check_free()
        new = replace(new, uid=self._owner_of(new.uid))
        engine = await create_engine(new, self._setup.config, self._setup.swap_dir)
        try:
            self._check_free()  # another may have come meanwhile
            vm = register(self.name, new, self._setup.config, engine, self._store)
        except BaseException:
            await asyncio.to_thread(engine.close)
            raise
        try:
            if vm.backing.vmm_registers:
                await self._store.try_barrier()  # if refused, it would hang: only we can serve it
            else:
                await self._must_be_kept()
            vm.engine.start()
            vm.register_dummy(vm.vmm)  # last: from here on fork() waits for us
            served = self._place.serve(vm)
        except BaseException:
            await vm.close()
            raise
        total_mib = sum(item.pages for item in vm.manifest.regions) * PAGE_SIZE >> 20
        _log.info(
            "registered: process %s of uid %d, %d MiB in %s",
            coverage.name_of(new.vmm.pid),
            new.uid,
            total_mib,
            "1 region" if len(vm.manifest.regions) == 1 else f"{len(vm.manifest.regions)} regions",
            extra=fields("", message_ids.VM_REGISTERED, vmmswap_pid=new.vmm.pid),
        )
        encryption.report(vm.engine)
        for limit in new.vmm.limits:
            _log.warning("process %d: %s", new.vmm.pid, limit)
        return served

    def _owner_of(self, uid: int) -> int:
        """Return the uid of the owner of the VM that this uid hands over."""
        recorded = self._ownership.owner_uid()
        return uid if recorded is None else recorded

    async def _must_be_kept(self) -> None:
        try:
            await self._store.barrier()
        except OSError as error:
            raise InternalError(
                f"systemd does not confirm what it keeps for us: {reason_of(error)}"
            ) from None

    def _check_free(self) -> None:
        if self._place.served is not None:
            raise taken_error(self.name, self.occupant())
        if self._place.is_ending:
            raise BusyError("this monitor is ending")

    # A VM comes whose message is sent only once

    @contextlib.asynccontextmanager
    async def keeping(self, frame: Frame) -> AsyncIterator[None]:
        """If this is cancelled, the monitor is exiting: a successor handles the message."""
        with self._postponed.until_served():
            pending.keep(frame, self._store)
            try:
                await self._store.try_barrier()
                yield
            except asyncio.CancelledError:
                raise
            except BaseException:
                pending.drop(self._store, has_vm=False)
                raise
            else:
                pending.drop(self._store, has_vm=self._place.served is not None)

    async def register_kept(self, kept: dict[str, int]) -> None:
        """If a predecessor died while a VM registered, only a kept message is of use."""
        frame = pending.take(kept, self._store)
        recovery.forget(kept, self._store)
        if frame is None:
            return
        _log.warning(
            ("a monitor died while process %d handed its memory over: starting again"), frame.peer.pid
        )
        with frame:
            try:
                await register_firecracker(frame, self, Lane())
            except (VmmswapError, OSError) as error:
                _log.warning("%s: hand-off refused: %s", self.name, reason_of(error))
            except Exception:
                _log.exception("%s: hand-off: a bug in vmmswap, not in the VMM", self.name)
        pending.drop(self._store, has_vm=self._place.served is not None)

    async def register_firecracker(self, request: requests.FirecrackerRequest) -> None:
        may_read = partial(self._ownership.check_snapshot, uid=request.peer.uid)

        def open_file() -> int:
            path = snapshot.configured_file(self.name, self._setup.config_path)
            file = snapshot.open_file(path, request.regions, may_read)
            _log.info("guest memory comes from SnapshotFile=%s", path)
            return file

        file = await made_on_thread(open_file, os.close)
        try:
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

    # A running VM is attached to

    async def attach(self, request: requests.AttachRequest) -> None:
        self._ownership.check(request.uid)
        user = User(request.uid, request.gid, request.caller_pid)
        options = Options(tuple(map(parse_region, request.regions)), request.force, user)
        await self.attach_to(
            request.pidfd, options, pins=request.pins, qmp=request.qmp, is_given_up=request.is_given_up
        )

    async def attach_to(
        self,
        pidfd: int,
        options: Options,
        *,
        pins: bool = True,
        qmp: str | None = None,
        is_given_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take over a running VMM that knows nothing of us, and all processes that map its memory."""
        from vmmswap.monitor.mappers import attached  # noqa: PLC0415  only attached VMs need it

        self._check_free()
        _check_wanted(is_given_up)
        if qmp:
            from vmmswap.monitor.qmp import Qmp  # noqa: PLC0415

            await Qmp.check(qmp, pid_of(pidfd, "the VMM"))
            options = await attached.asked(pidfd, qmp, options)
            _check_wanted(is_given_up)
        found = await attached.attach(pidfd, options)
        try:
            _check_wanted(is_given_up)
            served = await self.register_vm(attached.new_vm(found, pins=pins, qmp=qmp))
            for process in found.processes[1:]:
                try:
                    await served.processes.add(attached.new_process(process))
                except VmmswapError:
                    if is_alive(process.pidfd):
                        raise
            _check_wanted(is_given_up)
        except BaseException as error:
            has_ended = isinstance(error, VmmswapError) and not is_alive(found.vmm.pidfd)
            await self._place.forget()
            await attached.undo(found)
            if has_ended:
                raise NotSupportedError(f"process {found.vmm.pid} has ended") from None
            raise
        found.fds.close()
        await self._store.try_barrier()

    # What the VM's hand-off says later

    def served_pid(self, uffd: int) -> int | None:
        served = self._place.served
        return None if served is None else served.processes.pid_of(uffd)

    async def add_process(self, request: requests.AddProcessRequest) -> None:
        await self._check_huge_pages(request.process.pid, request.process.regions)
        await self._registered().processes.add(_new_process(request.process))
        await self._store.try_barrier()

    async def add_region(self, request: requests.AddRegionRequest) -> None:
        vm = self._registered().vm
        if request.uffd is not None:
            raise NotSupportedError(
                "fds[0]: further memory is served by the userfaultfd that was registered: leave it out"
            )
        await self._check_huge_pages(vm.vmm.pid, request.regions)
        self._registered().take_events()  # a child that was forked by now does not have the new memory
        vm = self._registered().vm
        given_up = {region.memfd for region in request.regions} - vm.memfds.keys()
        reopened = {number: _fd_of(request, vm, number) for number in given_up if 0 <= number < len(vm.files)}
        vm.add_memory(request.memfds, request.regions, reopened)
        await self._store.try_barrier()

    async def _check_huge_pages(self, pid: int, regions: Sequence[Region]) -> None:
        """Only while memory is out: otherwise Enable does it."""
        served = self._registered()
        if served.vm.engine.stats().tracking:
            await served.processes.check_huge_pages([(pid, region.addr, region.end) for region in regions])

    async def remove_region(self, request: requests.RemoveRegionRequest) -> None:
        await self._registered().vm.remove_regions(request.regions)

    async def connection_lost(self, error: VmmswapError | None) -> None:
        self._store.remove(fdstore.CONNECTION)
        served = self._place.served
        if served is None or error is not None or not await served.processes.is_vmm_alive():
            return  # its pidfd reports its end
        _log.info("the VMM has closed its connection: its memory is swapped in and it is released")
        served.vm.change(releasing=True)
        served.orders.release("the VMM has closed its connection", must=True)

    def _registered(self) -> ServedVm:
        if self._place.served is None:
            raise BusyError("the VM is gone")
        return self._place.served


def _check_wanted(is_given_up: Callable[[], bool]) -> None:
    """Do not carry out a cancelled order later: it may have waited for long before we began."""
    if is_given_up():
        raise NotSupportedError("the attach was cancelled: the caller has closed the connection")


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
    """Return the fd, among those sent, of a file that the VM had before."""
    for fd in request.fds:
        with contextlib.suppress(OSError):
            if file_id(fd) == vm.files[number]:
                return fd
    raise InternalError(f"memfd {number} was not sent")
