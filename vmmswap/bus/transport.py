# SPDX-License-Identifier: GPL-2.0-or-later
"""One stream to a message bus: finding it, introducing ourselves, reading and writing whole messages.

File descriptors are not negotiated: none of our interfaces carries one, so the bus refuses messages that
do, and no caller can fill our fd table.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from urllib.parse import unquote

from vmmswap.bus import dbus
from vmmswap.bus.dbus import Frame, Message
from vmmswap.errors import VmmswapError
from vmmswap.reasons import reason_of

SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
_SETUP_TIMEOUT_S = 20.0
_FLUSH_TIMEOUT_S = 2.0
_HEADER_LIMIT_BYTES = 16 * 1024
_PIECE_BYTES = 64 * 1024
_UNSENT_LIMIT_BYTES = 16 * 1024 * 1024


class BusUnreachableError(VmmswapError):
    """There is no message bus to talk to."""


def bus_address(address: str | None = None) -> str:
    """The address to use: the given one, else DBUS_SYSTEM_BUS_ADDRESS, else the system bus."""
    return address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS


def socket_paths(address: str) -> list[str]:
    """The sockets that a D-Bus address names, abstract ones starting with NUL. Only unix: is spoken."""
    paths = []
    for part in address.split(";"):
        transport, _, options = part.partition(":")
        pairs = dict(pair.split("=", 1) for pair in options.split(",") if "=" in pair)
        if transport == "unix" and "path" in pairs:
            paths.append(unquote(pairs["path"]))
        elif transport == "unix" and "abstract" in pairs:
            paths.append("\0" + unquote(pairs["abstract"]))
    if not paths:
        raise BusUnreachableError(f"bus address {address!r} names no unix socket: use unix:path=/...")
    return paths


class Transport:
    """A stream that has said who we are. `read` and `send` carry messages until `read` says that it ended."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, address: str) -> Transport:
        """Connect to the first socket of the address that answers; BusUnreachableError if none does."""
        reasons = []
        for path in socket_paths(address):
            try:
                async with asyncio.timeout(_SETUP_TIMEOUT_S):
                    return await cls._open_path(path)
            except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
                reasons.append(reason_of(error) or type(error).__name__)
        raise BusUnreachableError(
            f"cannot reach the message bus at {address}: {'; '.join(reasons)}. Start it, or name one by --bus"
        )

    @classmethod
    async def _open_path(cls, path: str) -> Transport:
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            uid = str(os.geteuid()).encode().hex()
            writer.write(f"\0AUTH EXTERNAL {uid}\r\n".encode())
            reply = await reader.readuntil(b"\r\n")
            if not reply.startswith(b"OK "):
                raise ConnectionRefusedError(
                    f"the bus refuses uid {os.geteuid()}: {reply.decode(errors='replace')!r}"
                )
            writer.write(b"BEGIN\r\n")
        except BaseException:
            writer.close()
            raise
        return cls(reader, writer)

    async def read(self, wants_body: Callable[[Message, int], bool]) -> Message:
        """The next message. Its body is read if `wants_body(header, body_bytes)`, else skipped: left empty.

        Raises EOFError or OSError at the end of the stream; MalformedError if this message alone is
        unreadable, so that the next one may be asked for.
        """
        while True:
            frame = dbus.decode_frame(await self._reader.readexactly(dbus.FIXED_HEADER_BYTES))
            if frame.fields_bytes <= _HEADER_LIMIT_BYTES:
                return await self._read_rest(frame, wants_body)
            await self._skip(frame.fields_bytes + frame.body_bytes)  # whose it is would be in there

    async def _read_rest(self, frame: Frame, wants_body: Callable[[Message, int], bool]) -> Message:
        fields = await self._reader.readexactly(frame.fields_bytes)
        try:
            message = dbus.decode_header(frame, fields)
        except dbus.MalformedError:
            await self._skip(frame.body_bytes)
            raise
        if not wants_body(message, frame.body_bytes):
            await self._skip(frame.body_bytes)
            return message
        message.body = dbus.decode_body(
            frame, message.signature, await self._reader.readexactly(frame.body_bytes)
        )
        return message

    async def _skip(self, count_bytes: int) -> None:
        while count_bytes > 0:
            piece_bytes = min(count_bytes, _PIECE_BYTES)
            await self._reader.readexactly(piece_bytes)
            count_bytes -= piece_bytes

    def send(self, message: Message) -> None:
        """Queue the message. A bus that does not read for so long that the queue is full is cut off."""
        self._writer.write(dbus.encode(message))
        if self._writer.transport.get_write_buffer_size() > _UNSENT_LIMIT_BYTES:
            self._writer.transport.abort()

    async def close(self) -> None:
        """Send what is queued, then end the stream."""
        self._writer.close()
        try:
            async with asyncio.timeout(_FLUSH_TIMEOUT_S):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()
