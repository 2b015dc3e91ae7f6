# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM with private memory, which it moves itself and hands over; for tests of what becomes of it.

with PrivateVmm(monitor.socket, size) as vmm:
    vmm.digest()     # of all of its memory, as it reads it
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
SEED = 13


def contents(size_bytes: int) -> bytes:
    return random.Random(SEED).randbytes(size_bytes)  # noqa: S311 - nothing is kept secret


class PrivateVmm:
    """The running program. Leaving the `with` block kills it."""

    def __init__(self, socket: Path, size_bytes: int, *options: str, prefix: Sequence[str] = ()) -> None:
        """options: `inherited`: children get the memory; `locked`: it is locked."""
        program = (sys.executable, "-m", "tests.support.private_vmm")
        self.process = subprocess.Popen(
            [*prefix, *program, str(socket), str(size_bytes), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        self.pid = self.process.pid
        self.said = self._line()

    def __enter__(self) -> Self:
        assert self.said == "ready"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.process.communicate()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def digest(self) -> str:
        return self.order("digest")

    def write(self, page: int, byte: int) -> str:
        """Fill a page; the digest that all has then."""
        return self.order(f"write {page} {byte}")

    def discard(self, page: int) -> str:
        """Give a page up; the digest that all has then."""
        return self.order(f"discard {page}")

    def grow(self, size_bytes: int) -> None:
        """Hand more memory over."""
        assert self.order(f"grow {size_bytes}") == "grown"

    def shrink(self) -> str:
        """Take back what was handed over last, which must be in; what the monitor says to that."""
        return self.order("shrink")

    def run_child(self) -> None:
        """fork() and exec of a program that ends at once."""
        assert self.order("child") == "0"

    def order(self, text: str) -> str:
        assert self.process.stdin
        self.process.stdin.write(f"{text}\n".encode())
        self.process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().decode().strip()


class _Guest:
    def __init__(self, socket: str, size_bytes: int, options: list[str]) -> None:
        from vmmswap.handoff.client import DummyPage, VmmClient, open_userfaultfd  # noqa: PLC0415
        from vmmswap.handoff.private_memory import Mover, private_region  # noqa: PLC0415

        self.maps = [_Map(size_bytes)]
        self.maps[0].map[:] = contents(size_bytes)
        self.dummy, uffd = DummyPage(), open_userfaultfd()
        self.mover = Mover([(self.maps[0].addr, size_bytes)])
        if "inherited" in options:
            self.maps[0].advise(11)  # MADV_DOFORK
        if "locked" in options:
            ctypes.CDLL(None).mlock(ctypes.c_void_p(self.maps[0].addr), ctypes.c_size_t(size_bytes))
        self.region = private_region
        self.client = VmmClient.connect(socket)
        self.client.register(
            [private_region(self.maps[0].addr, size_bytes)],
            [],
            uffd,
            dummy_page=self.dummy.addr,
            mailbox=self.mover.mailbox,
        )

    def obey(self, words: list[str]) -> str:
        from vmmswap.errors import VmmswapError  # noqa: PLC0415

        match words:
            case ["write", page, byte]:
                start = int(page) * mmap.PAGESIZE
                self.maps[0].map[start : start + mmap.PAGESIZE] = bytes([int(byte)]) * mmap.PAGESIZE
            case ["discard", page]:
                self.maps[0].map.madvise(mmap.MADV_DONTNEED, int(page) * mmap.PAGESIZE, mmap.PAGESIZE)
            case ["grow", size]:
                more = _Map(int(size))
                more.map[:] = contents(int(size))
                self.maps.append(more)
                self.mover.add(more.addr, int(size))
                self.client.add_region([self.region(more.addr, int(size))], [])
                return "grown"
            case ["shrink"]:
                last = self.maps[-1]
                try:
                    self.client.remove_region([self.region(last.addr, last.size_bytes)])
                except VmmswapError as error:
                    return error.message
                self.maps.pop()
                return "shrunk"
            case ["child"]:
                if (child := os.fork()) == 0:
                    os.execvp("true", ["true"])  # noqa: S606 - no shell is wanted
                return str(os.waitpid(child, 0)[1])
        return hashlib.sha256(b"".join(item.map[:] for item in self.maps)).hexdigest()


class _Map:
    """Beside a page that keeps the kernel from joining it with its neighbours."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.map = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.addr = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def advise(self, advice: int) -> None:
        assert (
            ctypes.CDLL(None).madvise(ctypes.c_void_p(self.addr), ctypes.c_size_t(self.size_bytes), advice)
            == 0
        )


def _main(socket: str, size_bytes: int, options: list[str]) -> None:
    from vmmswap.errors import VmmswapError  # noqa: PLC0415

    try:
        guest = _Guest(socket, size_bytes, options)
    except VmmswapError as error:
        _say(f"{type(error).__name__}: {error.message}")
        return
    _say("ready")
    for line in sys.stdin:
        _say(guest.obey(line.split()))


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
