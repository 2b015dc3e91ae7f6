# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process maps: /proc/PID/maps and smaps.

Both wait for the process's mmap lock: call them on a thread. PermissionError if they may not be read;
FileNotFoundError or ProcessLookupError if the process has ended.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmmswap.linux.files import FileId

_MAX_MAPS_BYTES = 64 << 20  # vm.max_map_count's default gives some 6 MiB
_LINE = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) ([0-9]+) *(.*)")

LOCKED = b"lo"  # flags of a mapping (VmFlags): mlock()
MAY_WRITE = b"mw"
HUGETLB = b"ht"
NOT_FORKED = b"dc"  # MADV_DONTFORK
NO_HUGE_PAGES = b"nh"  # MADV_NOHUGEPAGE
REGISTERED_MISSING = b"um"  # with a userfaultfd, for missing pages


@dataclass(frozen=True, slots=True)
class Mapping:
    """One VMA of a process, or neighbouring ones that continue each other."""

    start: int
    end: int
    perms: str  # as in the file: rw-s
    offset_bytes: int
    file: FileId  # dev and inode 0 where no file is mapped
    path: str = ""

    @property
    def size_bytes(self) -> int:
        return self.end - self.start

    @property
    def is_anonymous(self) -> bool:
        return self.file.inode == 0

    @property
    def place(self) -> str:
        return f"{self.start:#x}-{self.end:#x} {self.perms}"

    def overlaps(self, start: int, end: int) -> bool:
        return self.start < end and start < self.end

    def __str__(self) -> str:
        size = f"{self.size_bytes >> 20} MiB" if self.size_bytes >= 1 << 20 else f"{self.size_bytes} bytes"
        return f"{self.place} {size} {self.path or 'anonymous'}"


def read_mappings(pid: int) -> list[Mapping]:
    """The process's mappings by address."""
    with Path(f"/proc/{pid}/maps").open("rb", buffering=1 << 20) as file:
        data = file.read(_MAX_MAPS_BYTES)
    return [_mapping(match) for match in map(_LINE.fullmatch, data.splitlines()) if match]


def _mapping(match: re.Match[bytes]) -> Mapping:
    start, end, offset, major, minor = (int(match[idx], 16) for idx in (1, 2, 4, 5, 6))
    file = FileId(os.makedev(major, minor), int(match[7]))
    return Mapping(start, end, match[3].decode(), offset, file, match[8].decode(errors="replace"))


def joined(mappings: list[Mapping]) -> list[Mapping]:
    """Mappings as they were made: neighbours of one file that continue each other are one."""
    found: list[Mapping] = []
    for item in mappings:
        if found and _continues(found[-1], item):
            first = found.pop()
            found.append(Mapping(first.start, item.end, item.perms, first.offset_bytes, item.file, item.path))
        else:
            found.append(item)
    return found


def _continues(first: Mapping, second: Mapping) -> bool:
    return (
        not second.is_anonymous
        and (first.end, first.perms, first.file) == (second.start, second.perms, second.file)
        and first.offset_bytes + first.size_bytes == second.offset_bytes
    )


def flags_of_mappings(pid: int) -> Iterator[tuple[Mapping, frozenset[bytes]]]:
    """Each mapping with the kernel's flags. Walks all page tables."""
    for mapping, text in _smaps(pid, b"VmFlags:"):
        yield mapping, frozenset(text.split())


def anonymous_kib_of_mappings(pid: int) -> Iterator[tuple[Mapping, int]]:
    """Each mapping with how much of it is anonymous memory on RAM. Walks all page tables."""
    for mapping, text in _smaps(pid, b"Anonymous:"):
        yield mapping, int(text.split()[0])


def _smaps(pid: int, key: bytes) -> Iterator[tuple[Mapping, bytes]]:
    """Each mapping with the value of one key."""
    head: re.Match[bytes] | None = None
    with Path(f"/proc/{pid}/smaps").open("rb", buffering=1 << 20) as lines:
        for line in lines:
            if line.startswith(key):
                if head is not None:
                    yield _mapping(head), line[len(key) :]
            elif not line[:1].isupper():
                head = _LINE.fullmatch(line.rstrip(b"\n"))
