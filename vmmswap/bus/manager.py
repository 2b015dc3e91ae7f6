# SPDX-License-Identifier: GPL-2.0-or-later
"""org.vmmswap.Manager: one VM on the bus, as its monitor exports it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from vmmswap.bus.authority import Authority
from vmmswap.bus.connection import Connection
from vmmswap.bus.dbus import Value, clean
from vmmswap.bus.dispatch import Call, Caller, variants
from vmmswap.bus.interface import MANAGER, PROPERTIES_CHANGED, PROPERTIES_INTERFACE, STATUS_CHANGED, Interface
from vmmswap.control import VmControl
from vmmswap.names import bus_name_of, object_path_of
from vmmswap.status import KEYS, Status

Authorize = Callable[[Caller, str, str, int | None], Awaitable[None]]  # as Authority.check
Emit = Callable[[str, str, str, str, list[Any]], None]


def status_values(status: Status) -> dict[str, Any]:
    """The status by its keys on the bus, each value of the plain type that its signature takes."""
    convert: dict[str, Callable[[Any], Any]] = {
        "s": lambda text: clean(str(text)),
        "t": int,
        "u": int,
        "b": bool,
    }
    return {row.key: convert[row.signature](getattr(status, row.attribute)) for row in KEYS}


class ManagerObject:
    """Exports `control`. Changing methods are authorised first; reading is for everyone."""

    interfaces = (MANAGER,)

    def __init__(self, control: VmControl, authorize: Authorize, emit: Emit) -> None:
        self.path = object_path_of(control.name)
        self._control = control
        self._authorize = authorize
        self._emit = emit
        self._told = _signalled(status_values(control.status()))
        control.subscribe(self._changed)

    async def call(self, _interface: Interface, call: Call) -> list[Any]:
        if call.method.action:
            await self._authorize(
                await call.caller(), call.method.action, self._control.name, self._control.owner_uid
            )
        match call.method.name:
            case "Status":
                await self._control.refresh()
                return [variants(MANAGER, status_values(self._control.status()))]
            case "Configuration":
                return [[[clean(text) for text in row] for row in await self._control.configuration()]]
            case "Enable":
                await self._control.enable()
            case "Disable":
                await self._control.disable()
            case "Trim":
                await self._control.trim()
            case "Wake":
                await self._control.wake()
            case "Flush":
                await self._control.flush()
            case "StartPageFaultLogging":
                await self._control.start_page_fault_logging()
            case "StopPageFaultLogging":
                await self._control.stop_page_fault_logging()
            case "Exit" | "Detach":
                await self._control.exit()
        return []

    async def get(self, interface: Interface, name: str) -> Value:
        return (await self.get_all(interface))[name]

    async def get_all(self, _interface: Interface) -> dict[str, Any]:
        await self._control.refresh()
        return status_values(self._control.status())

    def _changed(self, status: Status) -> None:
        values = status_values(status)
        self._emit(
            self.path,
            MANAGER.name,
            STATUS_CHANGED.name,
            STATUS_CHANGED.signature,
            [variants(MANAGER, values)],
        )
        told, self._told = self._told, _signalled(values)
        changed = {key: value for key, value in self._told.items() if told[key] != value}
        if changed:
            body = [MANAGER.name, variants(MANAGER, changed), []]
            self._emit(
                self.path, PROPERTIES_INTERFACE, PROPERTIES_CHANGED.name, PROPERTIES_CHANGED.signature, body
            )


def _signalled(values: dict[str, Any]) -> dict[str, Any]:
    return {row.key: values[row.key] for row in KEYS if row.signalled}


async def publish(control: VmControl, address: str | None = None, *, required: bool = True) -> Connection:
    """Put the VM on the bus: its name owned, its object exported. Close the connection to take it off again.

    Raises BusUnreachableError without a bus, NameUnavailableError if another monitor has this VM's name. A
    monitor that already serves a guest passes required=False: the VM appears on the bus as soon as it can.
    """
    connection = Connection(address)
    connection.export(ManagerObject(control, Authority(connection).check, connection.emit))
    await connection.start(required=required)
    try:
        await connection.own_name(bus_name_of(control.name))
    except BaseException:
        await connection.close()
        raise
    return connection
