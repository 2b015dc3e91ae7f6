# SPDX-License-Identifier: GPL-2.0-or-later
"""org.vmmswap.Host and the ObjectManager, at /org/vmmswap."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from vmmswap.bus.authority import Authority
from vmmswap.bus.connection import Connection
from vmmswap.bus.dbus import Value, plain
from vmmswap.bus.dispatch import Call, Caller
from vmmswap.bus.interface import ATTACH, HOST, MANAGER, OBJECT_MANAGER, RELEASE, Interface
from vmmswap.bus.presence import CallerLeftError
from vmmswap.bus.waiting import JOBS, Slots
from vmmswap.errors import (
    AccessDeniedError,
    BusyError,
    InternalError,
    NoSuchVMError,
    NotSupportedError,
    VmmswapError,
)
from vmmswap.host.attach_order import MonitorEndedError, attach_message, connect, send_attach
from vmmswap.host.held_process import HeldProcess, user_behind
from vmmswap.host.registry import ListedVm, Registry
from vmmswap.host.sockets import Sockets, reason_in_journal
from vmmswap.host.units import Units
from vmmswap.names import HOST_PATH, check_name, object_path_of, socket_path_of

log = logging.getLogger(__name__)

_APPEAR_TIMEOUT_S = 10.0
_LOOK_AGAIN_S = 1.0
_ATTEMPTS = 3

_T = TypeVar("_T")


class HostObject:
    """The host's VMs as a whole."""

    path = HOST_PATH
    interfaces = (HOST, OBJECT_MANAGER)

    def __init__(
        self, connection: Connection, registry: Registry, units: Units, authority: Authority
    ) -> None:
        self._connection = connection
        self._registry = registry
        self._sockets = Sockets(units)
        self._authority = authority
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._jobs = Slots(JOBS)
        self._following: dict[str, asyncio.Task[None]] = {}
        registry.on_gone = self._vm_gone

    async def call(self, _interface: Interface, call: Call) -> list[Any]:
        match call.method.name:
            case "GetManagedObjects":
                return [await self._managed_objects()]
            case "ListVMs":
                return [await asyncio.gather(*(self._row(vm) for vm in self._registry.vms))]
            case "GetVM":
                return [self._registry.get(call.args[0]).path]
            case "Prepare" | "Unprepare" | "Attach" | "AttachWithOptions":
                return await self._change(call, await call.caller())
        raise InternalError(f"{call.method.name} is in no table")

    async def get(self, _interface: Interface, name: str) -> Value:
        raise InternalError(f"{name} is in no table")

    async def get_all(self, _interface: Interface) -> dict[str, Any]:
        return {}

    async def _managed_objects(self) -> dict[str, Any]:
        vms = self._registry.vms
        values = await asyncio.gather(*(_values_or_nothing(vm) for vm in vms))
        return {vm.path: {MANAGER.name: found} for vm, found in zip(vms, values, strict=True)}

    async def _row(self, vm: ListedVm) -> list[str]:
        """Name, object path, state; a monitor that does not answer has the state ""."""
        values = await _values_or_nothing(vm)
        return [vm.name, vm.path, values["State"].value if "State" in values else ""]

    async def _change(self, call: Call, caller: Caller) -> list[Any]:
        name = check_name(call.args[0])
        match call.method.name:
            case "Prepare":
                return [str(await self._prepare(name, caller))]
            case "Unprepare":
                await self._unprepare(name, caller)
                return []
            case "Attach":
                return [await self._attach(name, call.args[1], {}, caller)]
            case _:
                return [await self._attach(name, call.args[1], plain(call.args[2]), caller)]

    async def _prepare(self, name: str, caller: Caller) -> Path:
        await self._authority.check(caller, ATTACH, name, await self._owner_uid(name))
        async with self._turn(name, caller):
            await self._for(caller, self._claim(name, caller, for_attach=False))
        return socket_path_of(name)

    async def _unprepare(self, name: str, caller: Caller) -> None:
        if self._sockets.holder(name) is None:
            raise NoSuchVMError(f"no socket is prepared for {name!r}")
        await self._authority.check(caller, RELEASE, name, await self._owner_uid(name))
        async with self._turn(name, caller):
            if caller.uid != 0 and self._sockets.holder(name) == 0:
                raise self._denied(caller, RELEASE, name, f"the socket of {name!r} is the administrator's")
            if self._registry.has(name):
                vm = self._registry.get(name)
                if await vm.is_taken():
                    raise BusyError(f"the VM {name!r} is there: call Exit first")
                await vm.dismiss()
            await self._sockets.remove(name)

    async def _attach(self, name: str, pid: int, options: dict[str, Any], caller: Caller) -> str:
        with HeldProcess(pid) as target:
            self._check_owned(target, caller, name)
            message = attach_message(options, user_behind(caller))
            owner_uid = await self._owner_uid(name)
            await self._authority.check(caller, ATTACH, name, owner_uid, is_own_process=owner_uid is None)
            async with self._turn(name, caller):
                await self._for(caller, self._attach_in_turn(name, target, message, caller))
        log.info("attached pid %d as %s for uid %d", pid, name, caller.uid)
        try:
            return (await self._registry.wait_for(name, _APPEAR_TIMEOUT_S)).path
        except NoSuchVMError:
            return object_path_of(name)  # attached, but its monitor is not on this bus yet

    async def _attach_in_turn(self, name: str, target: HeldProcess, message: bytes, caller: Caller) -> None:
        """Who is refused ends what he has started."""
        was_there = self._registry.has(name)
        is_new = await self._claim(name, caller, for_attach=True)
        try:
            self._check_owned(target, caller, name)  # once more: it may have run a set-uid program meanwhile
            await self._sockets.start_monitor(name)
            await self._order_attach(name, target, message)
        except BaseException:
            # A task of its own: in one that was cancelled, asyncio.timeout() ends in CancelledError.
            await asyncio.create_task(self._undo_attach(name, was_there=was_there, is_new=is_new))
            raise

    async def _order_attach(self, name: str, target: HeldProcess, message: bytes) -> None:
        """A monitor that ends just now, because it has had no VM, leaves the order to its successor."""
        for attempt in range(_ATTEMPTS):
            with self._sockets.opened(name) as path:
                stream = connect(path)
            try:
                await send_attach(stream, message, target.pidfd)
            except MonitorEndedError as error:
                if attempt + 1 == _ATTEMPTS:
                    raise NotSupportedError(f"{error.message}; {reason_in_journal(name)}") from error
                await self._sockets.start_monitor(name)
            except (BusyError, NotSupportedError) as error:
                if vm := await self._vm_of(target.pid):
                    raise BusyError(
                        f"process {target.pid} is the VM {vm!r} already: `vmmswapctl detach {vm}` releases it"
                    ) from error
                raise
            else:
                return

    async def _vm_of(self, pid: int) -> str:
        """The name of the VM that this process is; "" if it is none."""
        vms = self._registry.vms
        values = await asyncio.gather(*(_values_or_nothing(vm) for vm in vms))
        pids = [found["Pid"].value if "Pid" in found else 0 for found in values]
        return next((vm.name for vm, one in zip(vms, pids, strict=True) if one == pid), "")

    async def _for(self, caller: Caller, work: Coroutine[Any, Any, _T]) -> _T:
        """Do it unless the caller leaves: nobody's order happens once he has given it up."""
        try:
            return await self._connection.presence.run(caller.name, work)
        except CallerLeftError:
            log.info("uid %d (pid %d) has cancelled its order", caller.uid, caller.pid)
            raise

    async def _undo_attach(self, name: str, *, was_there: bool, is_new: bool) -> None:
        try:
            if not was_there:
                await self._dismiss(name)
            if is_new:
                await self._sockets.remove(name)
        except VmmswapError as error:
            log.warning("what a refused attach started for %s stays: %s", name, error.message)

    @contextlib.asynccontextmanager
    async def _turn(self, name: str, caller: Caller) -> AsyncIterator[None]:
        """One change of a name's socket at a time, and not too many in all. Nobody waits who has left."""
        lock = self._turns.setdefault(name, asyncio.Lock())
        give_back = await self._connection.presence.run(caller.name, self._jobs.take(caller.uid))
        try:
            await self._connection.presence.run(caller.name, lock.acquire())
            try:
                yield
            finally:
                lock.release()
        finally:
            give_back()

    async def _claim(self, name: str, caller: Caller, *, for_attach: bool) -> bool:
        """Have the socket started for the caller, unless the VM or the name is another user's."""
        try:
            vm_uid = await self._vm_uid(name)
            if caller.uid != 0 and vm_uid not in (None, caller.uid):
                raise AccessDeniedError(f"the VM {name!r} belongs to uid {vm_uid}: choose another name")
            return await self._sockets.claim(name, caller.uid, for_attach=for_attach)
        except AccessDeniedError as error:
            raise self._denied(caller, ATTACH, name, error.message) from error

    def sweep(self) -> None:
        """See to sockets that a vmmswapd before us made for VMs that have gone since."""
        for name in self._sockets.made_for_attach():
            if not self._registry.has(name):
                self._vm_gone(name)

    def _vm_gone(self, name: str) -> None:
        if name not in self._following:
            task = asyncio.create_task(self._remove_with_vm(name))
            self._following[name] = task
            task.add_done_callback(lambda _done: self._following.pop(name))

    async def _remove_with_vm(self, name: str) -> None:
        """Remove a socket that was made only to attach to a VM, once its monitor has ended for good: one that
        is only started again keeps it.
        """
        while self._sockets.is_for_attach(name) and not self._registry.has(name):
            async with self._turns.setdefault(name, asyncio.Lock()):
                try:
                    if await self._sockets.remove_if_idle(name):
                        return
                except VmmswapError as error:
                    log.warning("the socket of %s, made to attach to it, stays: %s", name, error.message)
                    return
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _dismiss(self, name: str) -> None:
        """End the monitor that a refused attach has started: it would be listed as a VM."""
        if not await self._sockets.has_monitor(name):
            return
        try:
            await (await self._registry.wait_for(name, _APPEAR_TIMEOUT_S)).dismiss()
        except VmmswapError as error:
            log.warning("the monitor of %s, started for a refused attach, runs on: %s", name, error.message)

    def _check_owned(self, target: HeldProcess, caller: Caller, name: str) -> None:
        try:
            target.check_owned_by(caller)
        except AccessDeniedError as error:
            raise self._denied(caller, ATTACH, name, error.message) from error

    def _denied(self, caller: Caller, action: str, name: str, reason: str) -> AccessDeniedError:
        self._authority.log_denial(caller, action, name, reason)
        return AccessDeniedError(reason)

    async def _owner_uid(self, name: str) -> int | None:
        """Whose name this is, by what is recorded of it or else by the VM that there is."""
        owner = self._sockets.owner(name)
        return owner if owner is not None else await self._vm_uid(name)

    async def _vm_uid(self, name: str) -> int | None:
        """Whose VM this is, if there is one."""
        try:
            vm = self._registry.get(name)
            return await vm.owner_uid() if await vm.is_taken() else None
        except NoSuchVMError:
            return None


async def _values_or_nothing(vm: ListedVm) -> dict[str, Any]:
    try:
        return await vm.property_variants()
    except VmmswapError as error:
        log.warning("VM %s does not answer: %s", vm.name, error.message)
        return {}
