# SPDX-License-Identifier: GPL-2.0-or-later
"""The `attach` message to a VM's monitor, with the target's pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from vmmswap.bus.dispatch import RemoteError
from vmmswap.errors import BY_DBUS_NAME, PREFIX, NotSupportedError, ProtocolError, VmmswapError
from vmmswap.handoff.messages import attach_line
from vmmswap.linux.access import ROOT, User

_REPLY_LIMIT_BYTES = 64 * 1024
_REPLY_TIMEOUT_S = 120.0
_OPTIONS = ("regions", "force", "pins", "qmp")


def attach_message(options: dict[str, Any], user: User = ROOT) -> bytes:
    """The message's line; ProtocolError for options that the message cannot carry. user: the caller."""
    for key in options:
        if key not in _OPTIONS:  # one that was meant, and spelled wrong, must not be left out silently
            raise ProtocolError(f"options[{key!r}] is not known: there are {', '.join(_OPTIONS)}")
    try:
        caller = {} if user.is_root else {"uid": user.uid, "gid": user.gid, "caller_pid": user.pid}
        return attach_line({**options, **caller})
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"options cannot be written as JSON: {error}") from error


def connect(path: Path) -> socket.socket:
    """A connection to the monitor that listens at path; NotSupportedError if none does."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.setblocking(False)
    try:
        stream.connect(os.fspath(path))  # to a UNIX socket at once, or not at all
    except OSError as error:
        stream.close()
        raise NotSupportedError(f"no monitor answers at {path}: {error.strerror or error}") from error
    return stream


class MonitorEndedError(NotSupportedError):
    """The monitor has closed the connection without an answer: it has not attached, and the next one may."""


async def send_attach(stream: socket.socket, message: bytes, pidfd: int) -> None:
    """Send it to the monitor, and wait until it has attached, or raise its error. Closes the connection,
    which takes the order back where it is not done yet.
    """
    loop = asyncio.get_running_loop()
    with stream:
        try:
            async with asyncio.timeout(_REPLY_TIMEOUT_S):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its reply may say why
                    sent_bytes = socket.send_fds(stream, [message], [pidfd])
                    if rest := message[sent_bytes:]:
                        await loop.sock_sendall(stream, rest)
                reply = await _read_line(loop, stream)
        except TimeoutError:  # which is an OSError
            raise NotSupportedError(f"the monitor has not attached in {_REPLY_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise NotSupportedError(f"the monitor does not answer: {error.strerror or error}") from error
    if not reply:
        raise MonitorEndedError("the monitor ended before it answered")
    raise_reply(reply)


def raise_reply(line: bytes) -> None:
    """Return if the reply says ready or ok; else raise the error that it names, or ProtocolError."""
    try:
        reply = json.loads(line)
        if reply["type"] in ("ready", "ok"):
            return
        name, text = str(reply["error"]), str(reply["message"])
    except (ValueError, TypeError, KeyError) as error:
        raise ProtocolError(
            f"the monitor answered {line[:80]!r}: see `journalctl -t vmmswap-monitor` for its reason"
        ) from error
    raise _named_error(name, text)


def _named_error(name: str, text: str) -> VmmswapError:
    if name in BY_DBUS_NAME:
        return BY_DBUS_NAME[name](text)
    return RemoteError(name, text) if name.startswith(PREFIX) else ProtocolError(f"{name}: {text}")


async def _read_line(loop: asyncio.AbstractEventLoop, stream: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < _REPLY_LIMIT_BYTES:
        try:
            piece = await loop.sock_recv(stream, 4096)
        except ConnectionResetError:  # closed with something of ours unread
            break
        if not piece:
            break
        line += piece
    return line
