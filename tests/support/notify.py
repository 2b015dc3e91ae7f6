# SPDX-License-Identifier: GPL-2.0-or-later
"""A notify socket with an fd store, as a service manager has it, for tests that restart a monitor many times.

What only systemd itself can show (when it drops fds, when it restarts) is tested with systemd, elsewhere.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.patience import PATIENCE

DEADLINE_S = 60.0 * PATIENCE

# Puts the given fds at 3, 4, ... as systemd does, and becomes the program.
_LAUNCHER = """
import fcntl, os, sys
fds, names, argv = sys.argv[1].split(","), sys.argv[2], sys.argv[3:]
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 1000) for fd in fds if fd]
for number, fd in enumerate(high, 3):
    os.dup2(fd, number)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(high)), LISTEN_FDNAMES=names)
os.execv(argv[0], argv)
"""


class ServiceManager:
    """Receives what a service notifies. `kept` is its fd store, which outlives the service."""

    room = 4096  # fds, as it tells the service

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify"
        self.kept: dict[str, int] = {}
        self.lines: list[str] = []
        self._at: dict[str, Callable[[], None]] = {}
        self._changed = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(str(self.path))

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._receive, name="notify socket", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        for fd in self.kept.values():
            os.close(fd)

    @property
    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": str(self.path), "FDSTORE": str(self.room)}

    def program(self, *argv: str, listener: socket.socket) -> tuple[list[str], list[int]]:
        """How to start the service with its listening socket and all kept fds: command, fds to pass."""
        self._settle()
        with self._changed:
            kept = dict(self.kept)
        names = ["listen", *kept]
        fds = [listener.fileno(), *kept.values()]
        command = [sys.executable, "-c", _LAUNCHER, ",".join(map(str, fds)), ":".join(names)]
        return [*command, *argv], fds

    def _settle(self) -> None:
        """Work off what an earlier life has sent, as systemd does before it starts the next one."""
        reader, writer = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(str(self.path))
            socket.send_fds(sock, [b"BARRIER=1"], [writer])
        os.close(writer)
        ended = select.select([reader], [], [], DEADLINE_S)[0]
        os.close(reader)
        assert ended, "nobody reads the notify socket any more"

    def wait_line(self, text: str, deadline_s: float = DEADLINE_S) -> None:
        self.wait_lines(text, 1, deadline_s)

    def wait_lines(self, text: str, count: int, deadline_s: float = DEADLINE_S) -> None:
        with self._changed:
            assert self._changed.wait_for(
                lambda: sum(text in line for line in self.lines) >= count, deadline_s
            ), f"waited in vain for {text!r} among {self.lines}"

    def forget_lines(self) -> None:
        with self._changed:
            self.lines.clear()

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """As one that is stopped: nothing is read, and there is no room for any more."""
        with self._changed, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.sendto(b"STATUS=filler", str(self.path))
            yield

    def at(self, name: str, action: Callable[[], None]) -> None:
        """Do that once, as soon as `name` is kept; the service waits if it asks for a barrier next."""
        self._at[name] = action

    def kill(self, pid: int) -> None:
        """In an action: the service dies now, as if it had sent nothing after what was read last."""
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [])
        os.close(pidfd)
        while True:
            try:
                data, fds = self._read(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            if not data:
                return
            for fd in fds:
                os.close(fd)

    def _read(self, flags: int = 0) -> tuple[bytes, list[int]]:
        room = socket.CMSG_SPACE(253 * 4)
        data, control, _, _ = self._socket.recvmsg(1 << 16, room, socket.MSG_CMSG_CLOEXEC | flags)
        fds = array.array("i")
        for _level, _kind, payload in control:
            fds.frombytes(payload)
        return data, list(fds)

    def _receive(self) -> None:
        while True:
            data, fds = self._read()
            if not data:
                return
            with self._changed:
                self._take(data.decode().splitlines(), fds)
                self._changed.notify_all()

    def _take(self, lines: list[str], fds: list[int]) -> None:
        fields = dict(line.split("=", 1) for line in lines)
        self.lines += lines
        if "FDSTORE" in fields:
            assert len(fds) == 1
            assert fields["FDPOLL"] == "0"
            name = fields["FDNAME"]
            assert name not in self.kept, f"{name} is stored twice"
            assert ":" not in name
            self.kept[name] = fds[0]
            self._at.pop(name, _nothing)()
            return
        if "FDSTOREREMOVE" in fields:
            os.close(self.kept.pop(fields["FDNAME"]))
        for fd in fds:  # BARRIER=1: the end of the pipe
            os.close(fd)


def _nothing() -> None:
    """What is done at most names."""
