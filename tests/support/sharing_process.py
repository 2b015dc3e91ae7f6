# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that maps memfds as it is told, makes userfaultfds, forks, and says what it reads.

with SharingProcess() as process:
    addr = process.map(memfd, size_bytes)
    uffd, dummy_page = process.userfaultfd()
    assert process.digest() == sha256(contents).hexdigest()    # of all that it has mapped
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
ANSWER_S = 60.0 * float(os.environ.get("VMMSWAP_TEST_PATIENCE", "1"))  # see patience.py


class SharingProcess:
    """Leaving the `with` block ends it and its children."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(ANSWER_S)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.sharing_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
            )
        self.pid = self.process.pid
        self.pidfd = os.pidfd_open(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self.process.kill()
        self.process.wait()
        os.close(self.pidfd)

    def map(self, memfd: int, size_bytes: int) -> int:
        """The address."""
        return int(self._ask({"map": size_bytes}, [memfd])[0])

    def userfaultfd(self) -> tuple[int, int]:
        """A new one of that process, ours to close, and the address of a dummy page for it."""
        addr, fds = self._ask({"uffd": True})
        return fds[0], int(addr)

    def digest(self) -> str:
        return str(self._ask({"digest": True})[0])

    def fork(self) -> int:
        """The child's pid. It reads nothing yet."""
        return int(self._ask({"fork": True})[0])

    def child_digest(self) -> str:
        """What the child reads."""
        return str(self._ask({"child_digest": True})[0])

    def _ask(self, order: dict[str, Any], fds: Sequence[int] = ()) -> tuple[Any, list[int]]:
        socket.send_fds(self._socket, [json.dumps(order).encode()], list(fds))
        data, got, _, _ = socket.recv_fds(self._socket, 4096, 1)
        assert data, "the process has ended"
        return json.loads(data), list(got)


class _Worker:
    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []
        self._dummies: list[Any] = []
        self._child: socket.socket | None = None

    def do(self, order: dict[str, Any], fds: Sequence[int]) -> tuple[Any, list[int]]:
        match next(iter(order)):
            case "map":
                self._maps.append(mmap.mmap(fds[0], order["map"]))
                with suppress(OSError):  # a kernel without huge pages
                    self._maps[-1].madvise(mmap.MADV_NOHUGEPAGE)
                return _addr_of(self._maps[-1]), []
            case "uffd":
                from vmmswap.handoff.client import DummyPage, open_userfaultfd  # noqa: PLC0415  (slow)

                self._dummies.append(DummyPage())
                return self._dummies[-1].addr, [open_userfaultfd()]
            case "fork":
                return self._fork(), []
            case "child_digest":
                assert self._child
                self._child.send(b'{"digest": true}')
                return json.loads(self._child.recv(4096)), []
        return hashlib.sha256(b"".join(memory[:] for memory in self._maps)).hexdigest(), []

    def _fork(self) -> int:
        self._child, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            self._child.close()
            self.serve(theirs)
            os._exit(0)
        theirs.close()
        return pid

    def serve(self, sock: socket.socket) -> None:
        """Until the other end is closed."""
        while True:
            data, fds, _, _ = socket.recv_fds(sock, 4096, 1)
            if not data:
                return
            value, send = self.do(json.loads(data), fds)
            socket.send_fds(sock, [json.dumps(value).encode()], send)


def _addr_of(memory: mmap.mmap) -> int:
    import ctypes  # noqa: PLC0415

    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


if __name__ == "__main__":
    _Worker().serve(socket.socket(fileno=int(sys.argv[1])))
