# SPDX-License-Identifier: GPL-2.0-or-later
"""A client of QMP, QEMU's protocol of JSON lines: enough to have a VMM end its I/O and run again.

The VMM chose the path of the socket. So we send nothing before the kernel has confirmed that the VMM itself
listens there: otherwise a VMM could have us stop another one.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
from typing import Any, Final

from vmmswap.errors import NotSupportedError, VmmswapError
from vmmswap.handoff import fds

_SO_PEERPIDFD: Final = 77  # since Linux 6.5
_MAX_LINE_BYTES = 1 << 20
_CHECK_LIMIT_S = 5.0
_SHOWN = 200  # characters of a server's message to quote


class QmpError(NotSupportedError):
    """The socket is not the VMM's, cannot be used, or the connection is lost."""


class QmpRefusedError(QmpError):
    """The server answered a command with an error; the session stays open."""


class Qmp:
    """A session in which commands may be sent. Callers set time limits: nothing here has one."""

    def __init__(self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._path = path
        self._reader = reader
        self._writer = writer
        self._number = 0

    @classmethod
    async def connect(cls, path: str, pid: int) -> Qmp:
        """Open a session with the process `pid`, which must be the one that listens at `path`, as that
        process sees the path. Waits while another client has the server, since QEMU talks to one at a time.
        Raises QmpError.
        """
        sock = await _connected(path, pid)
        try:
            reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_MAX_LINE_BYTES)
        except BaseException:
            sock.close()
            raise
        qmp = cls(path, reader, writer)
        try:
            if "QMP" not in await qmp._read():
                raise qmp._error("does not begin with a greeting")
            await qmp.execute("qmp_capabilities")
        except BaseException:
            qmp.close()
            raise
        return qmp

    @staticmethod
    async def check(path: str, pid: int) -> None:
        """QmpError unless the process `pid` listens at `path`. Sends nothing, and waits for no greeting."""
        try:
            async with asyncio.timeout(_CHECK_LIMIT_S):
                (await _connected(path, pid)).close()
        except TimeoutError:
            raise QmpError(f"the QMP socket {path} is not found within {_CHECK_LIMIT_S:g} s") from None

    async def execute(  # what a command returns is its own
        self, command: str, arguments: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        """Send a command and wait for its answer. Skips the answers to earlier ones, so a wait that was
        cancelled does no harm. QmpRefusedError if the server refuses, QmpError if the connection is lost.
        """
        self._number += 1
        number = self._number
        message = {"execute": command, "id": number} | ({"arguments": arguments} if arguments else {})
        self._writer.write(json.dumps(message).encode() + b"\n")
        while True:
            message = await self._read()
            if message.get("id") != number:
                continue  # an event, or an answer that nobody waits for any more
            if "return" in message:
                return message["return"]
            error = message.get("error")
            text = error.get("desc") if isinstance(error, dict) else error
            raise QmpRefusedError(f"{self._path}: QMP {command}: {_shown(text)}")

    async def run_state(self) -> str:
        """QEMU's RunState: running, paused, suspended, inmigrate, ..."""
        answer = await self.execute("query-status")
        status = answer.get("status") if isinstance(answer, dict) else None
        if not isinstance(status, str):
            raise self._error(f"answers query-status with {_shown(answer)}")
        return status

    def close(self) -> None:
        self._writer.close()

    async def _read(self) -> dict[str, Any]:
        try:
            line = await self._reader.readline()
        except ValueError:
            raise self._error(f"sends a line of more than {_MAX_LINE_BYTES} bytes") from None
        except OSError as error:
            raise self._error(f"is lost: {error.strerror}") from None
        if not line.endswith(b"\n"):
            raise self._error("was closed by the VMM")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise self._error(f"sends a line that is not a JSON object (pretty=on?): {_shown(line)}")
        return message

    def _error(self, what: str) -> QmpError:
        return QmpError(f"the QMP socket {self._path} {what}")


def _shown(value: object) -> str:
    return ascii(value)[:_SHOWN]


async def _connected(path: str, pid: int) -> socket.socket:
    """On a thread: the VMM may have given a path on a file system that never answers."""
    work = asyncio.get_running_loop().run_in_executor(None, _connect, path, pid)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(_discard)
        raise


def _discard(work: asyncio.Future[socket.socket]) -> None:
    if not work.cancelled() and work.exception() is None:
        work.result().close()


def _connect(path: str, pid: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        place = os.open(f"/proc/{pid}/root{path}", os.O_PATH | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{place}")
        finally:
            os.close(place)
        _check_owner(sock, path, pid)
    except OSError as error:
        sock.close()
        raise QmpError(f"cannot connect to the QMP socket {path}: {_reason(error)}") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _reason(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"{error.strerror}: the monitor needs the right to write to it, and to get there through the"
            " directories (its unit has no CAP_DAC_OVERRIDE)"
        )
    if error.errno == errno.EAGAIN:
        return "too many clients wait there already"
    return os.strerror(error.errno or 0)


def _check_owner(sock: socket.socket, path: str, pid: int) -> None:
    """QmpError unless the process that called listen() is `pid`."""
    try:
        owner = _owner_of(sock)
    except VmmswapError as error:
        raise QmpError(f"the QMP socket {path} is not used: {error.message}") from None
    if owner != pid:
        raise QmpError(
            f"the QMP socket {path} is not used: the process {owner} listens there, and the VMM is {pid}"
        )


def _owner_of(sock: socket.socket) -> int:
    """The listener's pid, from its pidfd: the number alone may be another process's by now."""
    try:
        pidfd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")
    try:
        return fds.pid_of(pidfd, "its listener")
    finally:
        os.close(pidfd)
