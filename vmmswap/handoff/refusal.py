# SPDX-License-Identifier: GPL-2.0-or-later
"""What a peer is told that no session will serve: of a monitor that cannot start, or that is ending."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket

from vmmswap.errors import VmmswapError

_REFUSED_AT_ONCE = 64


def error_reply(error: VmmswapError) -> dict[str, str]:
    return {"type": "error", "error": error.dbus_name, "message": error.message}


def reply_line(reply: dict[str, str]) -> bytes:
    return json.dumps(reply, separators=(",", ":")).encode() + b"\n"


def refuse_waiting(listener: int, error: VmmswapError) -> None:
    """Tell all who have connected, and close their connections.

    systemd starts a monitor again for as long as a connection waits, so one that cannot start would be
    started for ever. The listening socket stays open, and blocking or not as it was.
    """
    line = reply_line(error_reply(error))
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    for _ in range(_REFUSED_AT_ONCE):
        if not poll.poll(0):
            return
        try:
            with socket.socket(fileno=os.dup(listener)) as accepting:
                connection, _address = accepting.accept()
        except OSError:
            return
        with connection:
            tell(connection, line)


def tell(connection: socket.socket, line: bytes) -> None:
    """Send it if there is room: whoever does not read is not waited for."""
    with contextlib.suppress(OSError):
        connection.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def has_hung_up(connection: int) -> bool:
    """True if the peer has closed its end. One that only sends no more (shutdown) still waits for a reply."""
    poll = select.poll()
    poll.register(connection, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _fd, events in poll.poll(0))
