# SPDX-License-Identifier: GPL-2.0-or-later
"""org.vmmswap.Host and the ObjectManager, at /org/vmmswap."""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from pathlib import Path
from typing import Any

from vmmswap.bus.authority import Authority
from vmmswap.bus.dbus import Value, plain
from vmmswap.bus.dispatch import Call, Caller
from vmmswap.bus.interface import ATTACH, HOST, MANAGER, OBJECT_MANAGER, Interface
from vmmswap.errors import AccessDeniedError, InternalError, NoSuchVMError, NotSupportedError, VmmswapError
from vmmswap.host.handover import attach_message, send_attach
from vmmswap.host.registry import Registry, Vm
from vmmswap.host.target import Target, user_behind
from vmmswap.host.units import Units
from vmmswap.names import HOST_PATH, check_name, object_path_of, socket_path_of

log = logging.getLogger(__name__)

_APPEAR_TIMEOUT_S = 10.0


class HostObject:
    """The host's VMs as a whole."""

    path = HOST_PATH
    interfaces = (HOST, OBJECT_MANAGER)

    def __init__(self, registry: Registry, units: Units, authority: Authority) -> None:
        self._registry = registry
        self._units = units
        self._authority = authority
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def call(self, _interface: Interface, call: Call) -> list[Any]:
        match call.method.name:
            case "GetManagedObjects":
                return [await self._managed_objects()]
            case "ListVMs":
                return [await asyncio.gather(*(self._row(vm) for vm in self._registry.vms))]
            case "GetVM":
                return [self._registry.get(call.args[0]).path]
            case "Prepare":
                return [str(await self._prepare(check_name(call.args[0]), await call.caller()))]
            case "Attach":
                name, pid = call.args
                return [await self._attach(name, pid, {}, await call.caller())]
            case "AttachWithOptions":
                name, pid, options = call.args
                return [await self._attach(name, pid, plain(options), await call.caller())]
        raise InternalError(f"{call.method.name} is in no table")

    async def get(self, _interface: Interface, name: str) -> Value:
        raise InternalError(f"{name} is in no table")

    async def get_all(self, _interface: Interface) -> dict[str, Any]:
        return {}

    async def _managed_objects(self) -> dict[str, Any]:
        vms = self._registry.vms
        values = await asyncio.gather(*(_values_or_nothing(vm) for vm in vms))
        return {vm.path: {MANAGER.name: found} for vm, found in zip(vms, values, strict=True)}

    async def _row(self, vm: Vm) -> list[str]:
        """Name, object path, state; a monitor that does not answer has the state ""."""
        values = await _values_or_nothing(vm)
        return [vm.name, vm.path, values["State"].value if "State" in values else ""]

    async def _prepare(self, name: str, caller: Caller) -> Path:
        owner_uid = await self._owner_uid(name)
        await self._authority.check(caller, ATTACH, name, owner_uid)
        path = await self._start_socket(name, caller, owner_uid)
        if caller.uid != 0:
            self._give(path, name, caller)
        return path

    async def _attach(self, name: str, pid: int, options: dict[str, Any], caller: Caller) -> str:
        check_name(name)
        with Target(pid) as target:
            self._check_owned(target, caller, name)
            message = attach_message(options, user_behind(caller))
            await self._authority.check(caller, ATTACH, name, caller.uid)
            async with self._turns.setdefault(name, asyncio.Lock()):
                await self._attach_in_turn(name, target, message, caller)
        log.info("attached pid %d as %s for uid %d", pid, name, caller.uid)
        try:
            return (await self._registry.wait_for(name, _APPEAR_TIMEOUT_S)).path
        except NoSuchVMError:
            return object_path_of(name)  # attached, but its monitor is not on this bus yet

    async def _attach_in_turn(self, name: str, target: Target, message: bytes, caller: Caller) -> None:
        """One at a time: who is refused ends the monitor that he has started."""
        is_new = not self._registry.has(name)
        path = await self._start_socket(name, caller, await self._owner_uid(name))
        self._check_owned(target, caller, name)  # once more: it may have run a set-uid program meanwhile
        try:
            await send_attach(path, message, target.pidfd)
        except VmmswapError:
            if is_new:
                await self._dismiss(name)
            raise

    async def _dismiss(self, name: str) -> None:
        """End the monitor that a refused attach has started: it would be listed as a VM."""
        try:
            await (await self._registry.wait_for(name, _APPEAR_TIMEOUT_S)).dismiss()
        except VmmswapError as error:
            log.warning("the monitor of %s, started for a refused attach, goes on: %s", name, error.message)

    def _check_owned(self, target: Target, caller: Caller, name: str) -> None:
        try:
            target.check_owned_by(caller)
        except AccessDeniedError as error:
            raise self._denied(caller, name, error.message) from error

    def _denied(self, caller: Caller, name: str, reason: str) -> AccessDeniedError:
        self._authority.log_denial(caller, ATTACH, name, reason)
        return AccessDeniedError(reason)

    async def _owner_uid(self, name: str) -> int | None:
        """Whose VM this is, if there is one."""
        try:
            vm = self._registry.get(name)
            return await vm.owner_uid() if await vm.is_taken() else None
        except NoSuchVMError:
            return None

    async def _start_socket(self, name: str, caller: Caller, owner_uid: int | None) -> Path:
        """Start vmmswap@NAME.socket, unless the VM or the socket is another user's."""
        if caller.uid != 0 and owner_uid not in (None, caller.uid):
            raise self._denied(
                caller, name, f"the VM {name!r} belongs to uid {owner_uid}: choose another name"
            )
        await self._units.start(f"vmmswap@{name}.socket")
        path = socket_path_of(name)
        try:
            holder = path.stat(follow_symlinks=False).st_uid
        except OSError as error:
            raise _no_socket(path, name, error) from error
        if caller.uid not in (0, holder) and holder != 0:
            raise self._denied(caller, name, f"{path} was prepared for uid {holder}: choose another name")
        return path

    def _give(self, path: Path, name: str, caller: Caller) -> None:
        """The socket is the caller's to connect to."""
        try:
            os.chown(path, caller.uid, -1, follow_symlinks=False)
        except OSError as error:
            raise _no_socket(path, name, error) from error


def _no_socket(path: Path, name: str, error: OSError) -> NotSupportedError:
    return NotSupportedError(f"vmmswap@{name}.socket is started, yet {path}: {error.strerror}")


async def _values_or_nothing(vm: Vm) -> dict[str, Any]:
    try:
        return await vm.property_variants()
    except VmmswapError as error:
        log.warning("VM %s does not answer: %s", vm.name, error.message)
        return {}
