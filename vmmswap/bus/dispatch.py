# SPDX-License-Identifier: GPL-2.0-or-later
"""What a method call becomes: the object it is for, the reply, or an error by name.

No traceback crosses the bus: what is not a VmmswapError is a bug of ours, logged here once and answered with
org.vmmswap.Error.Internal. Every call that expects a reply gets one, also when its handler is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vmmswap.bus.dbus import Flag, Kind, Message, Value, Variant, clean
from vmmswap.bus.interface import (
    INTROSPECTABLE,
    PEER,
    PROPERTIES,
    STANDARD,
    Interface,
    Method,
    Property,
    node_xml,
)
from vmmswap.bus.waiting import CALLS, CALLS_PER_SENDER, Places, Waiter, waiter
from vmmswap.errors import BusyError, InternalError, VmmswapError

log = logging.getLogger(__name__)

DBUS_ERROR = "org.freedesktop.DBus.Error."
_CALL_BODY_LIMIT_BYTES = 64 * 1024
_CALLS = 4096  # also of callers that the bus has not named yet


class RemoteError(VmmswapError):
    """An error with a D-Bus name of its own: what a peer answered with, or one of org.freedesktop.DBus's."""

    def __init__(self, error_name: str, message: str) -> None:
        super().__init__(message)
        self.error_name = error_name


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a call, by the bus's own word. `name` is the unique name of the connection."""

    name: str
    uid: int
    pid: int
    interactive: bool


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a method of ours. `caller` asks the bus who it is from; AccessDeniedError if unknown."""

    method: Method
    args: list[Any]
    sender: str
    caller: Callable[[], Awaitable[Caller]]


class BusObject(Protocol):
    """What can be exported at a path. Its methods raise VmmswapError; all else is answered as Internal."""

    @property
    def path(self) -> str: ...

    @property
    def interfaces(self) -> tuple[Interface, ...]: ...

    async def call(self, interface: Interface, call: Call) -> list[Any]:
        """Do it, and return one value for each of the method's `outs`."""

    async def get(self, interface: Interface, name: str) -> Value:
        """One property's value."""

    async def get_all(self, interface: Interface) -> dict[str, Any]:
        """All properties' values by name."""


@dataclass(frozen=True, slots=True)
class _Target:
    item: BusObject | None  # None: a path that only leads to objects, where standard interfaces answer
    interface: Interface
    method: Method


def error_name_of(error: VmmswapError) -> str:
    """The D-Bus name that a caller sees."""
    return error.error_name if isinstance(error, RemoteError) else error.dbus_name


class Dispatcher:
    """Answers method calls to exported objects, each in a task of its own."""

    def __init__(
        self, send: Callable[[Message], None], caller_of: Callable[[str, bool], Awaitable[Caller]]
    ) -> None:
        self._send = send
        self._caller_of = caller_of
        self._objects: dict[str, BusObject] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight: Counter[str] = Counter()
        self._places = Places(CALLS, "calls")
        self.handled = 0  # calls so far
        self.explain_missing: Callable[[str], VmmswapError | None] = lambda _path: None

    @property
    def busy(self) -> int:
        """How many calls are being handled."""
        return len(self._tasks)

    def add(self, item: BusObject) -> None:
        self._objects[item.path] = item

    def remove(self, path: str) -> None:
        self._objects.pop(path, None)

    def wants_body(self, message: Message, body_bytes: int) -> bool:
        """True if the arguments of this call should be read at all."""
        if body_bytes > _CALL_BODY_LIMIT_BYTES:
            return False
        try:
            return self._find(message).method.in_signature == message.signature
        except VmmswapError:
            return False

    def handle(self, message: Message) -> None:
        """Answer the call, now or later."""
        self.handled += 1
        if len(self._tasks) >= _CALLS or self._in_flight[message.sender] >= CALLS_PER_SENDER:
            self._reply_error(
                message, BusyError(f"more than {CALLS_PER_SENDER} calls are waiting: wait for replies first")
            )
            return
        self._in_flight[message.sender] += 1
        task = asyncio.create_task(self._answer(message), name=f"call {message.member}")
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._forget(done, message.sender))

    async def drain(self, timeout_s: float) -> None:
        """Wait until all calls are answered; those that take longer are cancelled, which answers them too."""
        tasks = self._tasks - {asyncio.current_task()}
        if tasks:
            _done, late = await asyncio.wait(tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _forget(self, task: asyncio.Task[None], sender: str) -> None:
        self._tasks.discard(task)
        self._in_flight[sender] -= 1
        if self._in_flight[sender] == 0:
            del self._in_flight[sender]

    async def _answer(self, message: Message) -> None:
        try:
            target = self._find(message)
            self._check_arguments(target, message)
            caller = await self._caller_of(message.sender, False)
            waiter.set(Waiter(caller.name, caller.uid))
            with self._places.one(caller.uid):
                body = await self._perform(target, message)
            self._reply(message, target.method.out_signature, body)
        except VmmswapError as error:
            self._reply_error(message, error)
        except asyncio.CancelledError:
            self._reply_error(message, InternalError(f"{message.member}: the service is exiting; call again"))
        except Exception:
            log.exception(
                "bug in the handler of %s.%s at %s", message.interface, message.member, message.path
            )
            self._reply_error(
                message,
                InternalError(f"{message.member} failed because of a bug in vmmswap; see its journal"),
            )

    def _find(self, message: Message) -> _Target:
        item = self._objects.get(message.path)
        own = item.interfaces if item else ()
        candidates = [it for it in (*own, *STANDARD) if message.interface in ("", it.name)]
        for interface in candidates:
            method = interface.method(message.member)
            if method and (
                item or interface is PEER or (interface is INTROSPECTABLE and self._leads(message.path))
            ):
                return _Target(item, interface, method)
        if item is None and not self._leads(message.path):
            raise self.explain_missing(message.path) or RemoteError(
                DBUS_ERROR + "UnknownObject", f"there is no object at {message.path}"
            )
        if not candidates:
            raise RemoteError(
                DBUS_ERROR + "UnknownInterface", f"{message.path} has no interface {message.interface!r}"
            )
        raise RemoteError(
            DBUS_ERROR + "UnknownMethod",
            f"{message.interface or message.path} has no method {message.member!r}",
        )

    def _leads(self, path: str) -> bool:
        return bool(self._children(path))

    def _children(self, path: str) -> list[str]:
        prefix = path.rstrip("/") + "/"
        return sorted(
            {other[len(prefix) :].split("/")[0] for other in self._objects if other.startswith(prefix)}
        )

    @staticmethod
    def _check_arguments(target: _Target, message: Message) -> None:
        expected = target.method.in_signature
        if message.signature != expected:
            raise RemoteError(
                DBUS_ERROR + "InvalidArgs",
                f"{target.method.name} takes arguments of type {expected!r}, not {message.signature!r}",
            )
        if expected and not message.body:
            raise RemoteError(
                DBUS_ERROR + "LimitsExceeded",
                f"the arguments of {target.method.name} are longer than {_CALL_BODY_LIMIT_BYTES} bytes",
            )

    async def _perform(self, target: _Target, message: Message) -> list[Any]:
        if target.interface is PEER:
            return [_machine_id()] if target.method.outs else []
        if target.interface is INTROSPECTABLE:
            interfaces = (*STANDARD, *target.item.interfaces) if target.item else STANDARD[:2]
            return [node_xml(interfaces, self._children(message.path))]
        if target.item is None:
            raise InternalError(f"{message.path} was found without an object")
        if target.interface is PROPERTIES:
            return await self._properties(target.item, target.method.name, message.body)
        interactive = bool(message.flags & Flag.ALLOW_INTERACTIVE_AUTHORIZATION)
        call = Call(
            method=target.method,
            args=message.body,
            sender=message.sender,
            caller=lambda: self._caller_of(message.sender, interactive),
        )
        return await target.item.call(target.interface, call)

    async def _properties(self, item: BusObject, member: str, args: list[Any]) -> list[Any]:
        interface = next((it for it in (*item.interfaces, *STANDARD) if it.name == args[0]), None)
        if interface is None:
            raise RemoteError(DBUS_ERROR + "UnknownInterface", f"{item.path} has no interface {args[0]!r}")
        if member == "GetAll":
            values = await item.get_all(interface) if interface.properties else {}
            return [variants(interface, values)]
        found = interface.property(args[1])
        if found is None:
            raise RemoteError(DBUS_ERROR + "UnknownProperty", f"{interface.name} has no property {args[1]!r}")
        if member == "Set":
            raise RemoteError(DBUS_ERROR + "PropertyReadOnly", f"{found.name} can only be read")
        return [variant(found, await item.get(interface, found.name))]

    def _reply(self, message: Message, signature: str, body: list[Any]) -> None:
        if message.flags & Flag.NO_REPLY_EXPECTED:
            return
        self._send(
            Message(
                kind=Kind.RETURN,
                reply_serial=message.serial,
                destination=message.sender,
                signature=signature,
                body=body,
            )
        )

    def _reply_error(self, message: Message, error: VmmswapError) -> None:
        if message.flags & Flag.NO_REPLY_EXPECTED:
            return
        self._send(
            Message(
                kind=Kind.ERROR,
                reply_serial=message.serial,
                destination=message.sender,
                error_name=error_name_of(error),
                signature="s",
                body=[clean(error.message)],
            )
        )


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError as error:
        raise RemoteError(DBUS_ERROR + "FileNotFound", f"/etc/machine-id: {error.strerror}") from error


def variant(item: Property, value: Value) -> Value:
    """The property's value as a variant of the property's type."""
    return Variant(item.signature, value)


def variants(interface: Interface, values: dict[str, Any]) -> dict[str, Any]:
    """Values by property name, as a{sv} takes them."""
    return {
        item.name: variant(item, values[item.name]) for item in interface.properties if item.name in values
    }
