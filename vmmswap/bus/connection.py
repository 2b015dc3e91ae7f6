# SPDX-License-Identifier: GPL-2.0-or-later
"""A connection to the bus that comes back: calls, signals, names and objects outlive the bus daemon."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from vmmswap.bus.dbus import Flag, Kind, MalformedError, Message
from vmmswap.bus.dispatch import DBUS_ERROR, BusObject, Caller, Dispatcher, RemoteError
from vmmswap.bus.presence import Presence
from vmmswap.bus.transport import BusUnreachableError, Transport, bus_address
from vmmswap.errors import BY_DBUS_NAME, AccessDeniedError, VmmswapError

log = logging.getLogger(__name__)

BUS = "org.freedesktop.DBus"
_BUS_PATH = "/org/freedesktop/DBus"
_CALL_TIMEOUT_S = 25.0
_REPLY_BODY_LIMIT_BYTES = 16 * 1024 * 1024
_SIGNAL_BODY_LIMIT_BYTES = 64 * 1024
_RETRY_FIRST_S = 0.05
_RETRY_LAST_S = 5.0
_DRAIN_S = 2.0
_CALLERS_REMEMBERED = 1024
_DO_NOT_QUEUE = 4
_PRIMARY_OWNER, _ALREADY_OWNER = 1, 4


class NameUnavailableError(VmmswapError):
    """The bus does not give us the name that we want to own."""


@dataclass(frozen=True, slots=True)
class Match:
    """Which signals to hear. `sender` is what the bus filters by; a signal sent to us alone bypasses that, so
    whoever acts on a signal compares its sender with the owner it expects.
    """

    interface: str
    member: str
    sender: str = ""
    path: str = ""
    path_namespace: str = ""
    arg0namespace: str = ""
    arg0: str = ""

    def rule(self) -> str:
        keys = ("interface", "member", "sender", "path", "path_namespace", "arg0namespace", "arg0")
        return ",".join(
            ["type='signal'", *(f"{key}='{getattr(self, key)}'" for key in keys if getattr(self, key))]
        )

    def accepts(self, message: Message) -> bool:
        return (
            (message.interface, message.member) == (self.interface, self.member)
            and self.path in ("", message.path)
            and f"{message.path}/".startswith(f"{self.path_namespace}/")
            and (self.sender != BUS or message.sender == BUS)
        )


_OWNER_CHANGED = Match(BUS, "NameOwnerChanged", sender=BUS)


def _leaving(name: str) -> Match:
    return replace(_OWNER_CHANGED, arg0=name)


class Connection:
    """One connection to the message bus at `address` (default: DBUS_SYSTEM_BUS_ADDRESS, else the system bus).

    After `start` it looks after itself: when the bus goes away it connects again with growing pauses, asks
    for the same signals, runs the `on_connect` hooks, and owns the same names. It belongs to one event loop.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = bus_address(address)
        self.unique_name = ""
        self.dispatcher = Dispatcher(self._send, self.caller_of)
        self._transport: Transport | None = None
        self._reader: asyncio.Task[None] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._serial = 0
        self._pending: dict[int, asyncio.Future[list[Any]]] = {}
        self._matches: list[tuple[Match, Callable[[Message], None]]] = []
        self._hooks: list[Callable[[], Awaitable[None]]] = []
        self._names: list[str] = []
        self._callers: dict[
            str, tuple[int, int]
        ] = {}  # uid and pid by unique name, which the bus never reuses
        self.presence = Presence(self)

    @property
    def connected(self) -> bool:
        """True if the bus is there and all names are owned."""
        return self._ready.is_set()

    async def start(self, *, required: bool = True) -> None:
        """Connect. With `required`, BusUnreachableError if there is no bus now; else keep trying."""
        if required:
            await self._connect()
        self._supervisor = asyncio.create_task(self._supervise(), name="bus connection")

    async def wait_connected(self) -> None:
        """Wait until the bus is there and all names are owned."""
        await self._ready.wait()

    async def close(self) -> None:
        """Answer what is being handled, send what is queued, and leave the bus for good."""
        if self._supervisor:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        await self.dispatcher.drain(_DRAIN_S)
        await self._disconnect(BusUnreachableError("the connection to the message bus was closed"))

    async def own_name(self, name: str) -> None:
        """Own the name now and after each reconnect; without a bus (start(required=False)) once there is one.

        Raises NameUnavailableError if somebody else owns it or the bus forbids it.
        """
        if self._ready.is_set():
            await self._request_name(name)
        self._names.append(name)

    async def release_name(self, name: str) -> None:
        """Give the name up. Calls that were sent to it before are still delivered, and answered."""
        if name in self._names:
            self._names.remove(name)
        if self._ready.is_set():
            await self.call(BUS, _BUS_PATH, BUS, "ReleaseName", "s", [name])

    def export(self, item: BusObject) -> None:
        """Answer calls to item.path with this object."""
        self.dispatcher.add(item)

    def unexport(self, path: str) -> None:
        """Forget the object at this path."""
        self.dispatcher.remove(path)

    async def subscribe(self, match: Match, listener: Callable[[Message], None]) -> None:
        """Call listener with each signal that matches, from the event loop, now and after each reconnect."""
        self._matches.append((match, listener))
        if self._ready.is_set():
            await self.call(BUS, _BUS_PATH, BUS, "AddMatch", "s", [match.rule()])

    def on_connect(self, hook: Callable[[], Awaitable[None]]) -> None:
        """Await hook on each connect, after signals are asked for and before names are owned."""
        self._hooks.append(hook)

    def emit(self, path: str, interface: str, member: str, signature: str, body: list[Any]) -> None:
        """Send a signal to whoever listens. Without a bus it is dropped: nobody could have heard it."""
        self._send(
            Message(
                kind=Kind.SIGNAL,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=body,
            )
        )

    async def call(  # noqa: PLR0913, PLR0917  what a D-Bus call consists of
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: list[Any] | None = None,
        *,
        timeout_s: float = _CALL_TIMEOUT_S,
        flags: Flag = Flag.NONE,
        on_settled: Callable[[], None] = lambda: None,
    ) -> list[Any]:
        """Call a method and return its reply's values.

        Raises the class of vmmswap.errors that the reply names, RemoteError for any other error, and
        BusUnreachableError without a bus or when it goes away meanwhile. on_settled is called once the bus
        owes us no reply any more: after a timeout, or if we are cancelled, that may be long after the return.
        """
        message = Message(
            kind=Kind.CALL,
            flags=flags,
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=body or [],
        )
        try:
            serial = self._send_numbered(message)
        except BaseException:
            on_settled()
            raise
        if not serial:
            on_settled()
            raise BusUnreachableError(f"not connected to the message bus at {self.address}")
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._pending[serial] = future
        future.add_done_callback(lambda _done: self._settle(serial, on_settled))
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(future)
        except TimeoutError:
            raise RemoteError(
                DBUS_ERROR + "NoReply", f"{destination} did not answer {member} within {timeout_s:g} s"
            ) from None

    def _settle(self, serial: int, on_settled: Callable[[], None]) -> None:
        future = self._pending.pop(serial, None)
        if future is not None and not future.cancelled():
            future.exception()  # nobody may be left who would look at it
        on_settled()

    async def caller_of(self, sender: str, interactive: bool = False) -> Caller:
        """Who owns this unique name, as the bus saw it connect; AccessDeniedError if the bus cannot tell."""
        if sender not in self._callers:
            try:
                [found] = await self.call(BUS, _BUS_PATH, BUS, "GetConnectionCredentials", "s", [sender])
                who = found["UnixUserID"].value, found["ProcessID"].value
            except (KeyError, RemoteError) as error:
                raise AccessDeniedError(f"the bus does not say who {sender} is: {error}") from error
            if len(self._callers) >= _CALLERS_REMEMBERED:
                self._callers.clear()
            self._callers[sender] = who
        uid, pid = self._callers[sender]
        return Caller(sender, uid, pid, interactive)

    async def watch_leaving(self, name: str) -> None:
        """Have presence told when this unique name leaves, also if it has left by now."""
        await self.call(BUS, _BUS_PATH, BUS, "AddMatch", "s", [_leaving(name).rule()])
        if not await self.owner_of(name):
            self.presence.left(Message(kind=Kind.SIGNAL, body=[name, name, ""]))

    def stop_watching(self, name: str) -> None:
        """Undo one watch_leaving(), whatever became of it."""
        self.send_call(BUS, _BUS_PATH, BUS, "RemoveMatch", "s", [_leaving(name).rule()])

    def send_call(  # noqa: PLR0913, PLR0917  what a D-Bus call consists of
        self, destination: str, path: str, interface: str, member: str, signature: str, body: list[Any]
    ) -> None:
        """Call a method and want no answer. Without a bus nothing happens."""
        self._send(
            Message(
                kind=Kind.CALL,
                flags=Flag.NO_REPLY_EXPECTED,
                destination=destination,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=body,
            )
        )

    async def owner_of(self, name: str) -> str:
        """The unique name that owns this name now, or ""."""
        try:
            [owner] = await self.call(BUS, _BUS_PATH, BUS, "GetNameOwner", "s", [name])
        except RemoteError:
            return ""
        return str(owner)

    async def list_names(self, member: str = "ListNames") -> list[str]:
        """All names on the bus now; with "ListActivatableNames" those that it could start."""
        [names] = await self.call(BUS, _BUS_PATH, BUS, member)
        return list(names)

    def _send(self, message: Message) -> None:
        self._send_numbered(message)

    def _send_numbered(self, message: Message) -> int:
        if self._transport is None:
            return 0
        self._serial = self._serial % 0xFFFFFFFF + 1
        message.serial = self._serial
        self._transport.send(message)
        return message.serial

    async def _supervise(self) -> None:
        retry_s, last_reason = _RETRY_FIRST_S, ""
        while True:
            if self._reader:
                await asyncio.wait([self._reader])
                await self._disconnect(BusUnreachableError("the message bus went away"))
                log.warning("the message bus at %s went away; connecting again", self.address)
            try:
                await self._connect()
                log.info("connected to the message bus at %s", self.address)
                retry_s, last_reason = _RETRY_FIRST_S, ""
            except VmmswapError as error:
                if error.message != last_reason:
                    log.warning("%s; trying again", error.message)
                last_reason = error.message
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, _RETRY_LAST_S)

    async def _connect(self) -> None:
        self._transport = await Transport.open(self.address)
        self._reader = asyncio.create_task(self._read(self._transport), name="bus reader")
        try:
            [self.unique_name] = await self.call(BUS, _BUS_PATH, BUS, "Hello")
            for match, _listener in self._matches:
                await self.call(BUS, _BUS_PATH, BUS, "AddMatch", "s", [match.rule()])
            for hook in self._hooks:
                await hook()
            for name in self._names:
                await self._request_name(name)
        except BaseException:
            await self._disconnect(BusUnreachableError("the message bus went away"))
            raise
        self._ready.set()

    async def _disconnect(self, reason: VmmswapError) -> None:
        self._ready.clear()
        transport, self._transport = self._transport, None
        reader, self._reader = self._reader, None
        self._callers.clear()
        self.presence.all_left()
        for future in list(self._pending.values()):
            if not future.done():
                future.set_exception(reason)
        if transport:
            await transport.close()
        if reader:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _request_name(self, name: str) -> None:
        try:
            [answer] = await self.call(BUS, _BUS_PATH, BUS, "RequestName", "su", [name, _DO_NOT_QUEUE])
        except RemoteError as error:
            raise NameUnavailableError(
                f"the bus refuses us {name}: {error.message}. Is org.vmmswap.conf installed, and are we root?"
            ) from error
        if answer not in (_PRIMARY_OWNER, _ALREADY_OWNER):
            owner = await self.owner_of(name)
            raise NameUnavailableError(
                f"the bus name {name} is already owned, by {owner or 'somebody'}: stop that one first"
            )

    async def _read(self, transport: Transport) -> None:
        try:
            while True:
                try:
                    self._receive(await transport.read(self._wants_body))
                except MalformedError as error:
                    log.debug("%s; ignoring it", error)
        except (OSError, EOFError):
            pass  # the end of the stream
        except Exception:
            log.exception("bug in reading from the message bus; connecting again")
        finally:
            for future in list(self._pending.values()):
                if not future.done():
                    future.set_exception(BusUnreachableError("the message bus went away"))

    def _wants_body(self, message: Message, body_bytes: int) -> bool:
        if message.kind is Kind.CALL:
            return self.dispatcher.wants_body(message, body_bytes)
        if message.kind is Kind.SIGNAL:
            return body_bytes <= _SIGNAL_BODY_LIMIT_BYTES and (
                _OWNER_CHANGED.accepts(message) or any(m.accepts(message) for m, _ in self._matches)
            )
        return body_bytes <= _REPLY_BODY_LIMIT_BYTES and message.reply_serial in self._pending

    def _receive(self, message: Message) -> None:
        if message.kind is Kind.CALL:
            self.dispatcher.handle(message)
        elif message.kind is Kind.SIGNAL:
            if _OWNER_CHANGED.accepts(message):
                self._tell(self.presence.left, message)
            for match, listener in self._matches:
                if match.accepts(message):
                    self._tell(listener, message)
        elif (future := self._pending.get(message.reply_serial)) and not future.done():
            if message.kind is Kind.RETURN:
                future.set_result(message.body)
            else:
                future.set_exception(_error_of(message))

    @staticmethod
    def _tell(listener: Callable[[Message], None], message: Message) -> None:
        try:
            listener(message)
        except Exception:
            log.exception("bug in what listens to %s.%s", message.interface, message.member)


def _error_of(message: Message) -> VmmswapError:
    text = message.body[0] if message.body and isinstance(message.body[0], str) else "no message"
    cls = BY_DBUS_NAME.get(message.error_name)
    return cls(text) if cls else RemoteError(message.error_name, text)
