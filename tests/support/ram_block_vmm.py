# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM with private memory that says by QMP where its blocks are, as QEMU 8.0 and newer do.

python -m tests.support.ram_block_vmm SOCKET: RAM and video memory of 16 MiB each. A line `plug` on its stdin
adds a DIMM of 16 MiB, `no-address` has it answer as an older QEMU, and `check` compares all memory. It prints
`ready` for each line, and once when it begins; `wrong` if memory is.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.qmp_server import QmpServer

BLOCK_BYTES = 16 << 20
ROOT = Path(__file__).resolve().parents[2]


class Block:
    """As QEMU makes them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._map = mmap.mmap(-1, BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(mmap.MADV_DONTFORK)
        self._expected = (name.encode() + bytes(4096))[:4096] * (BLOCK_BYTES // 4096)
        self._map[:] = self._expected
        self.addr = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def is_right(self) -> bool:
        return self._map[:] == self._expected


class Memory:
    def __init__(self) -> None:
        self.blocks = [Block("pc.ram"), Block("0000:00:02.0/vga.vram")]
        self.has_addresses = True

    def ramblock(self, _arguments: dict[str, Any]) -> dict[str, str]:
        more = (f"{'HVA':>19}", " RO") if self.has_addresses else ("", "")
        lines = [f"{'Block Name':>24} {'PSize':>8} {'Offset':>19}{'Used':>19}{'Total':>19}{''.join(more)}"]
        for block in self.blocks:
            size = f" 0x{BLOCK_BYTES:016x}"
            place = f" 0x{block.addr:016x}  rw" if self.has_addresses else ""
            lines.append(f"{block.name:>24} {'4 KiB':>8}  0x{0:016x}{size}{size}{place}")
        return {"human-readable-text": "\n".join(lines) + "\n"}

    def memdev(self, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"id": block.name, "size": BLOCK_BYTES} for block in self.blocks if "vga" not in block.name]


def run(path: Path) -> None:
    memory = Memory()
    with QmpServer(path) as server:
        server.answers["x-query-ramblock"] = memory.ramblock
        server.answers["query-memdev"] = memory.memdev
        print("ready", flush=True)
        for line in sys.stdin:
            if line.strip() == "plug":
                memory.blocks.append(Block("dimm0"))
            elif line.strip() == "no-address":
                memory.has_addresses = False
            right = all(block.is_right() for block in memory.blocks)
            print("ready" if right else "wrong", flush=True)


class RamBlockVmm:
    """The running program. Leaving the `with` block kills it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.ram_block_vmm", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, order: str) -> None:
        """AssertionError if it finds that its memory is wrong."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"


if __name__ == "__main__":
    run(Path(sys.argv[1]))
