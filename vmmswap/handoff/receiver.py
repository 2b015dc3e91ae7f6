# SPDX-License-Identifier: GPL-2.0-or-later
"""One message off the socket: its bytes, its fds, its sender; within limits and in time.

A stream socket may cut a message anywhere, and glue it to the next. Two rules make what happens depend on
what the peer sent and never on timing:
- The fds come with the first byte, as one sendmsg makes them (the kernel ties them to the first buffer of
  it). The first read is of one byte, so that a later sendmsg cannot be glued to it, and fds with any later
  read are refused.
- A message is answered before the next is sent: bytes after the end of one are refused, read or still queued.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from dataclasses import dataclass
from types import TracebackType

from vmmswap.errors import ProtocolError
from vmmswap.handoff.ancillary import Piece, receive_piece
from vmmswap.handoff.lane import Lane
from vmmswap.handoff.messages import MAX_FDS, MAX_MESSAGE_BYTES
from vmmswap.handoff.peer import Peer, identify
from vmmswap.linux.owned import OwnedFds

_PIECE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Limits:
    message_bytes: int = MAX_MESSAGE_BYTES
    firecracker_bytes: int = 1 << 16
    fds: int = MAX_FDS
    silence_s: float = 10.0  # from connect to the first byte of the first message
    message_s: float = 10.0  # from a message's first byte to its last
    reply_s: float = 10.0  # for the peer to take a reply
    connections_per_uid: int = 16  # that have not registered
    connections: int = 64  # the same, of all uids but root and the VM's owner


@dataclass(frozen=True, slots=True)
class Frame:
    """A message as it came. Owns its fds and the sender's pidfd until closed: on a lane, where they may be
    anything, or as a context manager.
    """

    data: bytes
    fds: OwnedFds
    pidfd: OwnedFds
    peer: Peer

    @property
    def is_firecracker(self) -> bool:
        return self.data.startswith(b"[")

    def __enter__(self) -> Frame:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.fds.close()
        self.pidfd.close()


class _ArrayEnd:
    """Finds the end of a JSON array that comes in pieces, looking at each byte once."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def find(self, data: bytes) -> int:
        """The number of bytes up to the end of the array, or -1 if it is not in this piece."""
        for idx, byte in enumerate(data):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = byte == ord("\\")
                self._in_string = byte != ord('"')
            elif byte == ord('"'):
                self._in_string = True
            elif byte in b"[{":
                self._depth += 1
            elif byte in b"]}":
                self._depth -= 1
                if self._depth <= 0:
                    return idx + 1
        return -1


class _LineEnd:
    def find(self, data: bytes) -> int:
        return data.find(b"\n") + 1 or -1


async def wait_readable(sock: socket.socket) -> None:
    """Return when the socket has something to read, or has ended."""
    loop = asyncio.get_running_loop()
    readable = loop.create_future()

    def wake() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(sock.fileno(), wake)
    try:
        await readable
    finally:
        loop.remove_reader(sock.fileno())


async def _receive(sock: socket.socket, max_bytes: int, lane: Lane) -> Piece:
    """On the lane, because fds for which there is no room are closed by whoever receives."""
    while True:
        await wait_readable(sock)
        try:
            return await lane.run(lambda: receive_piece(sock, max_bytes), Piece.close)
        except BlockingIOError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return Piece(b"", OwnedFds(), OwnedFds(), None)


async def receive(sock: socket.socket, limits: Limits, silence_s: float | None, lane: Lane) -> Frame | None:
    """The next message, None at the end of the connection, ProtocolError if the peer breaks a rule or is too
    slow.

    silence_s: how long the peer may send nothing at all, None for ever. After an error the lane closes all.
    """
    try:
        async with asyncio.timeout(silence_s):
            first = await _receive(sock, 1, lane)
    except TimeoutError:
        raise ProtocolError(f"no message within {silence_s:g} s of connecting") from None
    if not first.data:
        lane.put(first.close)
        return None
    try:
        if len(first.fds) > limits.fds:
            raise ProtocolError(f"fds: {len(first.fds)} came: at most {limits.fds} in a message")
        async with asyncio.timeout(limits.message_s):
            data = await _receive_rest(sock, first, limits, lane)
        peer = await lane.run(lambda: identify(first.credentials, first.pidfd))
    except TimeoutError:
        lane.put(first.close)
        raise ProtocolError(
            f"the message did not end within {limits.message_s:g} s of its first byte"
        ) from None
    except BaseException:
        lane.put(first.close)
        raise
    return Frame(data, first.fds, first.pidfd, peer)


async def _receive_rest(sock: socket.socket, first: Piece, limits: Limits, lane: Lane) -> bytes:
    """All bytes of the message, without the newline."""
    is_array = first.data == b"["
    end_of: _ArrayEnd | _LineEnd = _ArrayEnd() if is_array else _LineEnd()
    limit = limits.firecracker_bytes if is_array else limits.message_bytes
    message = bytearray()
    data = first.data
    while (end := end_of.find(data)) < 0:
        message += data
        if len(message) > limit:
            raise ProtocolError(f"the message is longer than {limit} bytes")
        piece = await _receive(sock, _PIECE_BYTES, lane)
        try:
            _check_later_piece(first, piece)
        finally:
            lane.put(piece.close)
        data = piece.data
    message += data[:end]
    if len(message) > limit:
        raise ProtocolError(f"the message is longer than {limit} bytes")
    rest = data[end:]
    if (rest.strip() if is_array else rest) or (not is_array and _queued_bytes(sock)):
        raise ProtocolError("more came after the end of the message: wait for each reply")
    return bytes(message)


def _check_later_piece(first: Piece, piece: Piece) -> None:
    if not piece.data:
        raise ProtocolError("the connection ended in the middle of a message")
    if len(piece.fds):
        raise ProtocolError(
            f"fds: {len(piece.fds)} came later than the message's first byte: use one sendmsg"
        )
    if piece.credentials != first.credentials:
        raise ProtocolError("the message came from two processes")


def _queued_bytes(sock: socket.socket) -> int:
    queued: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, struct.pack("i", 0)))[0]
    return queued
