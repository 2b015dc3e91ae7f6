# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM that follows Firecracker's source (firecracker.c), and snapshots for it.

with Firecracker(monitor.socket, SIZES_MIB) as vmm:
    assert vmm.read(0, PAGES, path) == snapshot
"""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.programs import built

SOURCE = Path(__file__).with_name("firecracker.c")
PAGE = 4096
DEADLINE_S = 60.0


class Firecracker:
    """The running program. Leaving the `with` block kills it."""

    def __init__(
        self, socket: Path, sizes_mib: Sequence[int], *, version: str = "new", odd: str = ""
    ) -> None:
        sizes = ",".join(map(str, sizes_mib))
        self.process = subprocess.Popen(
            [str(built(SOURCE)), str(socket), version, sizes, *([odd] if odd else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert self.answer() == "sent"
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()

    def say(self, order: str) -> None:
        """Begin an order: the guest may have to wait for a page."""
        assert self.process.stdin
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout
        assert select.select([self.process.stdout], [], [], DEADLINE_S)[0], "the guest stands still"
        return self.process.stdout.readline().strip()

    def ask(self, order: str) -> str:
        self.say(order)
        return self.answer()

    def read(self, page: int, count: int, path: Path) -> bytes:
        """Guest memory as a system call of the VMM's finds it."""
        assert self.ask(f"read {page} {count} {path}") == "ok"
        return path.read_bytes()

    def sum(self, page: int, count: int) -> int:
        """The sum of all 8-byte words of these pages, as the guest's own loads find them."""
        return int(self.ask(f"sum {page} {count}"))


def sum_of(data: bytes) -> int:
    return sum(memoryview(data).cast("Q")) % (1 << 64)


def make_snapshot(path: Path, pages: int, *, holes: Sequence[range] = ()) -> bytes:
    """A memory file of random pages, with holes. What guest memory must hold."""
    data = bytearray(os.urandom(pages * PAGE))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, len(data))
        for hole in holes:
            data[hole.start * PAGE : hole.stop * PAGE] = bytes(len(hole) * PAGE)
        written = 0
        for hole in (*holes, range(pages, pages)):
            os.pwrite(fd, data[written * PAGE : hole.start * PAGE], written * PAGE)
            written = hole.stop
    finally:
        os.close(fd)
    return bytes(data)
