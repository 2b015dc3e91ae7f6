# SPDX-License-Identifier: GPL-2.0-or-later
"""recvmsg with everything that can come beside the bytes: fds, credentials, the sender's pidfd."""

from __future__ import annotations

import array
import errno
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from vmmswap.errors import ProtocolError
from vmmswap.handoff.messages import MAX_FDS
from vmmswap.linux.owned import OwnedFds

# Python 3.11 has no names for these; Linux 6.5 and newer have them.
SO_PASSPIDFD = 76
SCM_PIDFD = 4

_INT = struct.Struct("i")
_UCRED = struct.Struct("iII")  # pid, uid, gid; the kernel's -1 for an unknown uid reads as 2^32-1
_MAX_LABEL_BYTES = 256  # SCM_SECURITY, where the socket's creator asked for it
_ROOM = (
    socket.CMSG_SPACE(MAX_FDS * _INT.size)
    + socket.CMSG_SPACE(_UCRED.size)
    + socket.CMSG_SPACE(_INT.size)
    + socket.CMSG_SPACE(_MAX_LABEL_BYTES)
)


@dataclass(frozen=True, slots=True)
class Credentials:
    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What one recvmsg gave. Who gets it owns fds and pidfd."""

    data: bytes  # empty: end of file
    fds: OwnedFds
    pidfd: OwnedFds  # none, or the sender's
    credentials: Credentials | None

    def close(self) -> None:
        self.fds.close()
        self.pidfd.close()


def prepare(sock: socket.socket) -> None:
    """Ask for the sender's credentials and pidfd with every message. Listening sockets hand this on to
    accepted ones.

    SO_OOBINLINE because an out-of-band byte would otherwise make the socket readable with nothing to read.
    """
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    for option in (SO_PASSPIDFD, socket.SO_OOBINLINE):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        except OSError as error:
            if error.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
                raise


def receive_piece(sock: socket.socket, max_bytes: int) -> Piece:
    """One recvmsg that does not wait (BlockingIOError).

    ProtocolError, and no fd kept, if control data was cut off.
    """
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    data, control, got_flags, _ = sock.recvmsg(max_bytes, _ROOM, flags)
    piece = _parse(data, control)
    if got_flags & socket.MSG_CTRUNC:
        count = len(piece.fds)
        piece.close()
        raise ProtocolError(
            f"fds: control data was cut off after {count} fds: at most {MAX_FDS} in a message, and not more"
            " than the monitor may have open (LimitNOFILE=)"
        )
    return piece


def _parse(data: bytes, control: Iterable[tuple[int, int, bytes]]) -> Piece:
    fds, pidfd, credentials = OwnedFds(), OwnedFds(), None
    for level, kind, payload in control:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            numbers = array.array("i", payload[: len(payload) - len(payload) % _INT.size])
            for fd in numbers:
                fds.add(fd)
        elif kind == SCM_PIDFD and len(payload) == _INT.size:
            (fd,) = _INT.unpack(payload)
            if fd >= 0:  # else -errno: the sender was gone
                pidfd.add(fd)
        elif kind == socket.SCM_CREDENTIALS and len(payload) == _UCRED.size:
            credentials = Credentials(*_UCRED.unpack(payload))
    return Piece(data, fds, pidfd, credentials)
