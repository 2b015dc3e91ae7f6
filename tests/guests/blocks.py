# SPDX-License-Identifier: GPL-2.0-or-later
"""What workload.c has on its disks, as the host sees it: numbered blocks, then a part of its memory."""

from __future__ import annotations

import functools
import os
from array import array
from pathlib import Path

BLOCK_BYTES = 65536
STORED_BYTES = 4 << 20
_MASK = (1 << 64) - 1


def _mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


@functools.cache  # several disks have the same, and are looked at in the end
def _block(number: int) -> bytes:
    first = _mix(number)
    end = first + BLOCK_BYTES // 8
    words = range(first, end) if end <= _MASK else (word & _MASK for word in range(first, end))
    return array("Q", words).tobytes()


def write_blocks(path: Path, size_mib: int) -> None:
    """The blocks, and room for what is stored."""
    with path.open("wb") as file:
        for number in range((size_mib << 20) // BLOCK_BYTES):
            file.write(_block(number))
        file.truncate((size_mib << 20) + STORED_BYTES)


def wrong_blocks(path: Path) -> list[int]:
    """Numbers of the blocks that are not what they should be."""
    with path.open("rb") as file:
        total = (path.stat().st_size - STORED_BYTES) // BLOCK_BYTES
        return [number for number in range(total) if file.read(BLOCK_BYTES) != _block(number)]


def is_stored(path: Path) -> bool:
    """Whether the guest's memory came there as it was filled."""
    words = (idx * 0x9E3779B97F4A7C15 & _MASK ^ 0x0123456789ABCDEF for idx in range(STORED_BYTES // 8))
    with path.open("rb") as file:
        file.seek(-STORED_BYTES, os.SEEK_END)
        return file.read() == array("Q", words).tobytes()
