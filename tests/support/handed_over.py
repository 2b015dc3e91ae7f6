# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM with one file of memory, which it hands over; for tests of what becomes of that memory.

with HandedOver(monitor.socket, memory_fd) as vmm:
    vmm.exec()      # it becomes `sleep`, and keeps the file open
    vmm.kill()
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.guest_memory import map_guest_memory

ROOT = Path(__file__).resolve().parents[2]


class HandedOver:
    """The running program. Leaving the `with` block kills it and its child."""

    def __init__(self, socket: Path, memory: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.handed_over", str(socket), str(memory)],
            pass_fds=[memory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        self.pid = self.process.pid
        self.child = 0
        assert self._line() == "ready"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.kill_child()
        self.process.communicate()

    def exec(self) -> None:
        self._order("exec")
        assert self._line() == ""  # it has closed its output

    def fork(self) -> None:
        """A child that maps the memory too, without the file's fd, and answers from now on."""
        self._order("fork")
        self.child = int(self._line())

    def lock(self, call: str) -> None:
        """mlock or munlock all of the memory."""
        self._order(call)
        assert self._line() == call

    def digest(self) -> str:
        """What the child reads, or the VMM if there is none."""
        self.start_digest()
        return self.end_digest()

    def start_digest(self) -> None:
        self._order("digest")

    def end_digest(self) -> str:
        return self._line()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def kill_child(self) -> None:
        if self.child:
            os.kill(self.child, signal.SIGKILL)
            self.child = 0

    def _order(self, order: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{order}\n".encode())
        self.process.stdin.flush()

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().decode().strip()


def _main(path: str, memory: int) -> None:
    from vmmswap.handoff.client import DummyPage, Region, VmmClient, open_userfaultfd  # noqa: PLC0415

    size = os.fstat(memory).st_size
    mapped = map_guest_memory(memory, size)
    view = ctypes.c_char.from_buffer(mapped)
    dummy, uffd = DummyPage(), open_userfaultfd()
    client = VmmClient.connect(path)
    client.register([Region(ctypes.addressof(view), size, 0, 0)], [memory], uffd, dummy_page=dummy.addr)
    _say("ready")
    while (order := _order()) in ("mlock", "munlock", "digest"):
        if order == "digest":
            _say(hashlib.sha256(mapped[:]).hexdigest())
        else:
            _lock(order, ctypes.addressof(view), size)
            _say(order)
    if order == "exec":
        os.set_inheritable(memory, True)
        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
        os.execvp("sleep", ["sleep", "1000"])  # noqa: S606 - no shell is wanted
    if child := os.fork():
        _say(str(child))
        signal.pause()
    os.closerange(3, 1 << 16)  # the file's fds: mmap has one too
    while _order():
        _say(hashlib.sha256(mapped[:]).hexdigest())


def _lock(call: str, addr: int, size_bytes: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(ctypes.c_void_p(addr), ctypes.c_size_t(size_bytes)) != 0:
        raise OSError(ctypes.get_errno(), call)


def _order() -> str:
    line = b""
    while not line.endswith(b"\n") and (
        byte := os.read(0, 1)
    ):  # what follows is not ours: the child reads on
        line += byte
    return line.decode().strip()


def _say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
