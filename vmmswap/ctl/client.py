# SPDX-License-Identifier: GPL-2.0-or-later
"""VMs and vmmswapd as vmmswapctl sees them over the bus."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from vmmswap.bus.client import ClientConnection
from vmmswap.bus.connection import BUS, Match
from vmmswap.bus.dbus import Flag, Message, plain
from vmmswap.bus.dispatch import DBUS_ERROR, RemoteError
from vmmswap.bus.transport import BusUnreachableError
from vmmswap.ctl.failure import CtlError, ExitStatus
from vmmswap.ctl.output import StatusKeys
from vmmswap.errors import InvalidNameError, NoSuchVMError
from vmmswap.names import (
    BUS_NAME,
    HOST_INTERFACE,
    HOST_PATH,
    MANAGER_INTERFACE,
    VM_BUS_PREFIX,
    bus_name_of,
    name_of,
    object_path_of,
)

_SYSTEMD = "org.freedesktop.systemd1"
_SOCKET_UNIT = "vmmswap"  # vmmswap@NAME.socket
_READ_TIMEOUT_S = 25.0
_ORDER_TIMEOUT_S = 120.0  # polkit may be asking the user for a password
_NO_SERVICE = frozenset(DBUS_ERROR + name for name in ("ServiceUnknown", "NameHasNoOwner"))
_SERVICE_DIED = frozenset({DBUS_ERROR + "NoReply", DBUS_ERROR + "Disconnected"})
_REFUSED = frozenset(DBUS_ERROR + name for name in ("AccessDenied", "InteractiveAuthorizationRequired"))


class Client:
    """Calls to monitors, by VM name, and to vmmswapd. Raises CtlError, or the daemon's own vmmswap.errors.

    A VM's monitor is called by its own bus name: that works with and without vmmswapd.
    """

    def __init__(self, connection: ClientConnection, *, may_ask: bool = True) -> None:
        """may_ask: orders may wait until polkit has asked the user for a password."""
        self.connection = connection
        self._order_flags = Flag.ALLOW_INTERACTIVE_AUTHORIZATION if may_ask else Flag.NONE

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, address: str | None, *, may_ask: bool = True) -> AsyncIterator[Client]:
        """A client on the bus at the address (default: the system bus)."""
        connection = ClientConnection(address)
        try:
            await connection.connect()
            yield cls(connection, may_ask=may_ask)
        except BusUnreachableError as error:
            raise CtlError(ExitStatus.NO_DAEMON, error.message) from error
        finally:
            await connection.close()

    async def vm_names(self) -> list[str]:
        """The names of all VMs whose monitors are on the bus, sorted."""
        return sorted(filter(None, map(_vm_of, await self.connection.list_names())))

    async def host_vms(self) -> dict[str, str]:
        """Each VM that vmmswapd knows, with its state; {} on a host without vmmswapd."""
        names = {
            *await self.connection.list_names(),
            *await self.connection.list_names("ListActivatableNames"),
        }
        if BUS_NAME not in names:
            return {}
        vms = (await self.call_host("ListVMs"))[0]
        return {str(name): str(state) for name, _path, state in vms}

    async def listening(self) -> list[str]:
        """The names of all hand-off sockets that systemd listens on; [] without systemd."""
        try:
            [units] = await self._ask_systemd(
                "ListUnitsByPatterns", "asas", [["active"], [f"{_SOCKET_UNIT}@*.socket"]]
            )
        except RemoteError:
            return []
        return [str(unit[0]).removeprefix(f"{_SOCKET_UNIT}@").removesuffix(".socket") for unit in units]

    async def status(self, name: str) -> StatusKeys:
        """What the VM's Status() says."""
        return dict((await self._call_manager(name, "Status", _READ_TIMEOUT_S, Flag.NONE))[0])

    async def configuration(self, name: str) -> list[list[str]]:
        """What the VM's Configuration() says."""
        return list((await self._call_manager(name, "Configuration", _READ_TIMEOUT_S, Flag.NONE))[0])

    async def main_pid(self, unit: str) -> int:
        """The main process of a unit; CtlError if it has none."""
        unit = unit if "." in unit else f"{unit}.service"
        try:
            [path] = await self._ask_systemd("GetUnit", "s", [unit])
            pid = await self._service_pid(path) if unit.endswith(".service") else 0
            [processes] = await self._ask_systemd("GetUnitProcesses", "s", [unit])
        except RemoteError as error:
            raise CtlError(
                ExitStatus.FAILED, f"{unit}: {error.message}; `systemctl status {unit}` has more"
            ) from error
        pids = [pid] if pid else [found for _cgroup, found, _command in processes]
        if len(pids) != 1:
            raise CtlError(
                ExitStatus.FAILED,
                f"{unit} has {len(pids)} processes and no main one: give the VMM's PID instead of --unit",
            )
        return int(pids[0])

    async def _ask_systemd(self, member: str, signature: str, body: list[Any]) -> list[Any]:
        target = (_SYSTEMD, "/org/freedesktop/systemd1", f"{_SYSTEMD}.Manager", member, signature, body)
        return await self._call(target, _READ_TIMEOUT_S, Flag.NO_AUTO_START)

    async def _service_pid(self, path: str) -> int:
        body = [f"{_SYSTEMD}.Service", "MainPID"]
        target = (_SYSTEMD, path, "org.freedesktop.DBus.Properties", "Get", "ss", body)
        return int((await self._call(target, _READ_TIMEOUT_S, Flag.NO_AUTO_START))[0])

    async def order(self, name: str, member: str) -> None:
        """Call a method of the VM's that changes something; returns once it is accepted."""
        await self._call_manager(name, member, _ORDER_TIMEOUT_S, self._order_flags)

    async def call_host(self, member: str, signature: str = "", body: list[Any] | None = None) -> list[Any]:
        """Call a method of vmmswapd's. CtlError NO_DAEMON if it is neither running nor startable."""
        try:
            return await self._call(
                (BUS_NAME, HOST_PATH, HOST_INTERFACE, member, signature, body),
                _ORDER_TIMEOUT_S,
                self._order_flags,
            )
        except RemoteError as error:
            if error.error_name in _NO_SERVICE or ".Spawn." in error.error_name:
                raise CtlError(
                    ExitStatus.NO_DAEMON,
                    "vmmswapd is not on the bus: `systemctl start vmmswapd`, or see its journal",
                ) from error
            units = ["vmmswapd", *(f"vmmswap@{name}" for name in (body or [])[:1])]
            journal = " ".join(["journalctl", *(f"--unit={unit}" for unit in units)])
            raise _failed(error, "vmmswapd", journal) from error

    async def owner(self, name: str) -> str:
        """The unique bus name of the VM's monitor; NoSuchVMError if there is none."""
        owner = await self.connection.owner_of(bus_name_of(name))
        if not owner:
            raise _no_such_vm(name)
        return owner

    async def wait_for(self, name: str) -> None:
        """Wait until the VM's monitor is on the bus."""
        there = asyncio.Event()
        appears = Match(BUS, "NameOwnerChanged", sender=BUS, arg0namespace=bus_name_of(name))
        await self.connection.subscribe(appears, lambda _signal: there.set())
        while not await self.connection.owner_of(bus_name_of(name)):
            await there.wait()
            there.clear()

    @contextlib.asynccontextmanager
    async def watch(self, name: str) -> AsyncIterator[Watch]:
        """A watch over one VM that is there now. Raises NoSuchVMError."""
        watch = Watch(name, self.connection)
        bus_name, path = bus_name_of(name), object_path_of(name)
        changes = Match(MANAGER_INTERFACE, "StatusChanged", sender=bus_name, path=path)
        await self.connection.subscribe(changes, watch.on_signal)
        await self.connection.subscribe(
            Match(BUS, "NameOwnerChanged", sender=BUS, arg0namespace=bus_name), watch.on_signal
        )
        watch.owner = await self.owner(name)
        end = asyncio.create_task(watch.wake_at_end())
        try:
            yield watch
        finally:
            end.cancel()
            await asyncio.gather(end, return_exceptions=True)

    async def _call_manager(self, name: str, member: str, timeout_s: float, flags: Flag) -> list[Any]:
        target = (bus_name_of(name), object_path_of(name), MANAGER_INTERFACE, member, "", None)
        try:
            return await self._call(target, timeout_s, flags)
        except RemoteError as error:
            gone = error.error_name in _SERVICE_DIED and not await self.connection.owner_of(target[0])
            if gone or error.error_name in _NO_SERVICE:
                raise _no_such_vm(name) from error
            journal = f"journalctl --unit=vmmswap@{name}"
            raise _failed(error, f"the monitor of {name}", journal) from error

    async def _call(
        self,
        target: tuple[str, str, str, str, str, list[Any] | None],
        timeout_s: float,
        flags: Flag,
    ) -> list[Any]:
        return [
            plain(value) for value in await self.connection.call(*target, timeout_s=timeout_s, flags=flags)
        ]


class Watch:
    """One VM watched: `wait` returns when it may have changed; `gone` is true once its monitor has left."""

    def __init__(self, name: str, connection: ClientConnection) -> None:
        self.name = name
        self.owner = ""
        self.gone = False
        self._connection = connection
        self._changed = asyncio.Event()

    def on_signal(self, message: Message) -> None:
        """Take a signal that concerns this VM, from its monitor or the bus."""
        if message.member == "NameOwnerChanged" and message.body[0] == bus_name_of(self.name):
            self.gone = message.body[2] != self.owner
            self._changed.set()
        elif message.sender == self.owner and message.path == object_path_of(self.name):
            self._changed.set()

    async def wake_at_end(self) -> None:
        """Wake the waiter when the bus itself goes away."""
        await self._connection.ended.wait()
        self._changed.set()

    def clear(self) -> None:
        """Forget what has changed: call before looking at the status, so that no later change is missed."""
        self._changed.clear()

    async def wait(self, timeout_s: float | None) -> None:
        """Wait for a change, or until the timeout. Raises CtlError if the bus has gone."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        if self._connection.ended.is_set():
            raise CtlError(
                ExitStatus.NO_DAEMON,
                f"lost the message bus; the operation on {self.name} continues: "
                f"`vmmswapctl status {self.name}` when the bus is back",
            )


def vm_of_bus_name(bus_name: str) -> str:
    """The VM whose monitor owns this bus name, "" if it is no VM's."""
    return _vm_of(bus_name)


def _vm_of(bus_name: str) -> str:
    if not bus_name.startswith(VM_BUS_PREFIX):
        return ""
    try:
        return name_of(bus_name.removeprefix(VM_BUS_PREFIX))
    except InvalidNameError:
        return ""


def _no_such_vm(name: str) -> NoSuchVMError:
    return NoSuchVMError(f"no VM named {name}; `vmmswapctl list` shows all there are")


def _failed(error: RemoteError, who: str, journal: str) -> CtlError:
    if error.error_name in _REFUSED:
        return CtlError(ExitStatus.NOT_ALLOWED, f"{who} refuses: {error.message}; try as root")
    if error.error_name == DBUS_ERROR + "NoReply":
        return CtlError(ExitStatus.FAILED, f"{who} did not answer in time: `{journal}` may say why")
    return CtlError(
        ExitStatus.FAILED, f"{who} answered {error.error_name}: {error.message}; `{journal}` may say why"
    )
