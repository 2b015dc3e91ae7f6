# SPDX-License-Identifier: GPL-2.0-or-later
"""Which VMs there are: the owners of org.vmmswap.vm.*, each exported again by forwarding to its monitor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from vmmswap.bus.authority import Authority
from vmmswap.bus.connection import BUS, Connection, Match
from vmmswap.bus.dbus import Flag, Message, Value
from vmmswap.bus.dispatch import DBUS_ERROR, Call, RemoteError
from vmmswap.bus.interface import (
    INTERFACES_ADDED,
    INTERFACES_REMOVED,
    MANAGER,
    OBJECT_MANAGER_INTERFACE,
    PROPERTIES_CHANGED,
    PROPERTIES_INTERFACE,
    STATUS_CHANGED,
    Interface,
)
from vmmswap.bus.waiting import CHANGES, READS, Slots, waiter
from vmmswap.errors import BusyError, InvalidNameError, NoSuchVMError, VmmswapError
from vmmswap.names import HOST_PATH, VM_BUS_PREFIX, VM_PATH_PREFIX, label_of, name_of

log = logging.getLogger(__name__)

_READ_TIMEOUT_S = 5.0
_CHANGE_TIMEOUT_S = 3600.0  # Exit answers when all memory is in; the real caller has a timeout of its own
_GONE = tuple(DBUS_ERROR + name for name in ("ServiceUnknown", "NameHasNoOwner", "Disconnected", "NoReply"))
_FRESH_READS = 5
_CHANGES_PER_VM = 8


@dataclass(frozen=True, slots=True)
class _Slots:
    reads: Slots
    changes: Slots


class ListedVm:
    """One VM, forwarded. Reading needs no right; changing is authorised here, for the real caller."""

    interfaces = (MANAGER,)

    def __init__(
        self,
        connection: Connection,
        authority: Authority,
        label: str,
        owner: str,
        slots: _Slots,
    ) -> None:
        self.name = name_of(label)
        self.path = VM_PATH_PREFIX + label
        self.owner = owner  # the monitor's unique name
        self.changes = 0  # signals seen of it
        self._connection = connection
        self._authority = authority
        self._slots = slots
        self._changing = 0

    async def call(self, interface: Interface, call: Call) -> list[Any]:
        if not call.method.action:
            return await self._forward(interface.name, call.method.name, call.method.in_signature, call.args)
        caller = await call.caller()
        owner_uid = None if caller.uid == 0 else await self.owner_uid()
        await self._authority.check(caller, call.method.action, self.name, owner_uid)
        return await self._change(interface, call)

    async def get(self, interface: Interface, name: str) -> Value:
        [value] = await self._forward(PROPERTIES_INTERFACE, "Get", "ss", [interface.name, name])
        return value.value

    async def get_all(self, interface: Interface) -> dict[str, Any]:
        return {key: value.value for key, value in (await self.property_variants(interface)).items()}

    async def property_variants(self, interface: Interface = MANAGER) -> dict[str, Any]:
        """All properties as variants."""
        [values] = await self._forward(PROPERTIES_INTERFACE, "GetAll", "s", [interface.name])
        return dict(values)

    async def owner_uid(self) -> int:
        """The uid whose VM this is."""
        return int(await self.get(MANAGER, "OwnerUid"))

    async def is_taken(self) -> bool:
        """True if the monitor has a VM."""
        return bool(await self.get(MANAGER, "TotalPages"))

    async def dismiss(self) -> None:
        """End the monitor if it has no VM. Its socket stays: whoever connects starts it again."""
        if not await self.is_taken():
            await self._forward(MANAGER.name, "Exit", "", [], changes=True)

    async def _change(self, interface: Interface, call: Call) -> list[Any]:
        if self._changing >= _CHANGES_PER_VM:
            raise BusyError(f"{self._changing} calls wait for the VM {self.name!r}: wait for them to end")
        self._changing += 1
        try:
            return await self._forward(
                interface.name, call.method.name, call.method.in_signature, call.args, changes=True
            )
        finally:
            self._changing -= 1

    async def _forward(
        self, interface: str, member: str, signature: str, args: list[Any], *, changes: bool = False
    ) -> list[Any]:
        # To the unique name: neither a monitor that has come since nor activation is what the caller meant.
        slots = self._slots.changes if changes else self._slots.reads
        try:
            return await self._connection.call(
                self.owner,
                self.path,
                interface,
                member,
                signature,
                args,
                timeout_s=_CHANGE_TIMEOUT_S if changes else _READ_TIMEOUT_S,
                flags=Flag.NO_AUTO_START,
                on_settled=await self._slot_of(slots),
            )
        except RemoteError as error:
            if error.error_name in _GONE:
                raise await self._no_answer(error) from error
            raise

    async def _slot_of(self, slots: Slots) -> Callable[[], None]:
        """A slot for whose call this is. Nobody waits for one who has left the bus."""
        who = waiter.get()
        if who is None:
            return await slots.take(None)
        if slots.is_free(who.uid):
            return await slots.take(who.uid)
        return await self._connection.presence.run(who.name, slots.take(who.uid))

    async def _no_answer(self, error: RemoteError) -> VmmswapError:
        if await self._connection.owner_of(self.owner):
            return BusyError(f"the monitor of the VM {self.name!r} does not answer: {error.message}")
        return NoSuchVMError(f"the VM {self.name!r} has just gone: its monitor has ended")


class Registry:
    """The VMs that are on the bus now, kept up to date by the bus's own signals."""

    def __init__(self, connection: Connection, authority: Authority) -> None:
        self._connection = connection
        self._authority = authority
        self._vms: dict[str, ListedVm] = {}  # by object path
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = _Slots(Slots(READS), Slots(CHANGES))
        self._changed = asyncio.Condition()
        self.on_gone: Callable[[str], None] = lambda _name: None  # told the name of each VM that leaves
        self._told: set[str] = set()  # names that changed hands since _list began

    async def start(self) -> None:
        """Follow the bus. Call it before the connection starts: each connect begins with a fresh list."""
        owners = Match(BUS, "NameOwnerChanged", sender=BUS, arg0namespace=VM_BUS_PREFIX.rstrip("."))
        vms = VM_PATH_PREFIX.rstrip("/")
        await self._connection.subscribe(owners, self._owner_changed)
        for interface, member in (
            (MANAGER.name, "StatusChanged"),
            (PROPERTIES_INTERFACE, "PropertiesChanged"),
        ):
            await self._connection.subscribe(Match(interface, member, path_namespace=vms), self._relay)
        self._connection.on_connect(self._list)
        self._connection.dispatcher.explain_missing = self._explain_missing

    @property
    def vms(self) -> list[ListedVm]:
        """All VMs, by name."""
        return sorted(self._vms.values(), key=lambda vm: vm.name)

    def has(self, name: str) -> bool:
        """True if a monitor of that name is on the bus."""
        return VM_PATH_PREFIX + label_of(name) in self._vms

    def get(self, name: str) -> ListedVm:
        """The VM of this name; InvalidNameError or NoSuchVMError."""
        found = self._vms.get(VM_PATH_PREFIX + label_of(name))
        if found is None:
            raise NoSuchVMError(f"there is no VM {name!r}: `vmmswapctl list` shows those that there are")
        return found

    async def wait_for(self, name: str, timeout_s: float) -> ListedVm:
        """The VM of this name, once it is on the bus; NoSuchVMError if it does not come in time."""
        path = VM_PATH_PREFIX + label_of(name)
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: path in self._vms)
        except TimeoutError:
            pass
        return self.get(name)

    async def _list(self) -> None:
        for path in list(self._vms):
            self._forget(path)
        self._told.clear()
        for name in await self._connection.list_names():
            if not name.startswith(VM_BUS_PREFIX):
                continue
            owner = await self._connection.owner_of(name)
            if owner and name not in self._told:  # a signal is newer than this answer
                self._remember(name.removeprefix(VM_BUS_PREFIX), owner)

    def _remember(self, label: str, owner: str) -> ListedVm | None:
        try:
            vm = ListedVm(self._connection, self._authority, label, owner, self._slots)
        except InvalidNameError as error:
            log.warning("%s owns a bus name that is not a VM's: %s; ignoring it", owner, error.message)
            return None
        self._vms[vm.path] = vm
        self._connection.export(vm)
        return vm

    def _forget(self, path: str) -> ListedVm | None:
        self._connection.unexport(path)
        return self._vms.pop(path, None)

    def _owner_changed(self, message: Message) -> None:
        name, _old, new = message.body
        self._told.add(name)
        label = name.removeprefix(VM_BUS_PREFIX)
        known = self._vms.get(VM_PATH_PREFIX + label)
        if known and known.owner == new:
            return  # listed at connect, and reported once more
        if gone := self._forget(VM_PATH_PREFIX + label):
            self.on_gone(gone.name)
            body = [VM_PATH_PREFIX + label, [MANAGER.name]]
            self._emit(INTERFACES_REMOVED.name, INTERFACES_REMOVED.signature, body)
        if new and (vm := self._remember(label, new)):
            self._spawn(self._announce(vm))
        self._spawn(self._notify())

    async def _announce(self, vm: ListedVm) -> None:
        """InterfacesAdded with properties that no signal sent before it contradicts."""
        values: dict[str, Any] = {}
        for _ in range(_FRESH_READS):
            changes = vm.changes
            try:
                values = await vm.property_variants()
            except VmmswapError as error:
                log.warning("VM %s came, but does not answer: %s", vm.name, error.message)
            if changes == vm.changes:
                break
        if self._vms.get(vm.path) is vm:
            self._emit(INTERFACES_ADDED.name, INTERFACES_ADDED.signature, [vm.path, {MANAGER.name: values}])

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _relay(self, message: Message) -> None:
        vm = self._vms.get(message.path)
        if vm is None or vm.owner != message.sender:
            return  # ours, come back, or somebody's who is not this VM's monitor
        vm.changes += 1
        signal = STATUS_CHANGED if message.member == STATUS_CHANGED.name else PROPERTIES_CHANGED
        if message.signature == signal.signature:
            self._connection.emit(
                message.path, message.interface, message.member, message.signature, message.body
            )

    def _emit(self, member: str, signature: str, body: list[Any]) -> None:
        self._connection.emit(HOST_PATH, OBJECT_MANAGER_INTERFACE, member, signature, body)

    def _explain_missing(self, path: str) -> VmmswapError | None:
        if not path.startswith(VM_PATH_PREFIX):
            return None
        return NoSuchVMError(f"there is no VM at {path}: `vmmswapctl list` shows those that there are")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
