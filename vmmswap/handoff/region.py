# SPDX-License-Identifier: GPL-2.0-or-later
"""A part of guest memory, as all rooms of the monitor name it. Not in messages.py: a successor serves page
faults before it loads that.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

PAGE_SIZE = mmap.PAGESIZE
PRIVATE = -1  # in place of a memfd's number: private memory of the VMM


@dataclass(frozen=True, slots=True)
class Region:
    """A part of guest memory: where one process has it, and where it lies in its memfd."""

    addr: int  # page aligned, in the process that the uffd belongs to
    size_bytes: int
    offset_bytes: int  # in the memfd; of private memory, its address
    memfd: int  # which memfd: see the message that the region belongs to; PRIVATE: none

    @property
    def end(self) -> int:
        return self.addr + self.size_bytes

    @property
    def end_offset(self) -> int:
        return self.offset_bytes + self.size_bytes


def is_private(regions: Sequence[Region]) -> bool:
    """A message has private regions only, or none."""
    return regions[0].memfd == PRIVATE


def private_region(addr: int, size_bytes: int) -> Region:
    """Private memory of the process that hands it over."""
    return Region(addr, size_bytes, addr, PRIVATE)
