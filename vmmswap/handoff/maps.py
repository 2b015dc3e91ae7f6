# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a process maps what is claimed: /proc/PID/maps against regions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmmswap.errors import AccessDeniedError, InvalidRegionError, ProtocolError
from vmmswap.handoff.fds import FileId
from vmmswap.handoff.messages import Region

_MAX_MAPS_BYTES = 64 << 20  # vm.max_map_count's default gives some 6 MiB
_LINE = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) ([0-9]+)")


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps."""

    start: int
    end: int
    perms: str  # as in the file: rw-s
    offset_bytes: int
    file: FileId  # dev and inode 0 where no file is mapped

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.end:#x} {self.perms}"


def read_maps(pid: int) -> list[Mapping]:
    """The process's mappings by address. Takes its mmap lock, so it may wait: call it on a thread."""
    try:
        with Path(f"/proc/{pid}/maps").open("rb", buffering=1 << 20) as file:
            data = file.read(_MAX_MAPS_BYTES)
    except PermissionError:
        raise AccessDeniedError(
            f"/proc/{pid}/maps may not be read: run the monitor as root or with CAP_SYS_PTRACE"
        ) from None
    except (FileNotFoundError, ProcessLookupError):
        raise ProtocolError(f"the process {pid} has ended") from None
    return [_mapping(match) for match in map(_LINE.match, data.splitlines()) if match]


def _mapping(match: re.Match[bytes]) -> Mapping:
    start, end, offset, major, minor = (int(match[idx], 16) for idx in (1, 2, 4, 5, 6))
    return Mapping(start, end, match[3].decode(), offset, FileId(os.makedev(major, minor), int(match[7])))


def check_mapped(maps: Iterable[Mapping], field: str, region: Region, file: FileId | None) -> None:
    """InvalidRegionError unless the process maps the whole region: shared and writable if it is of a file."""
    addr = region.addr
    for mapping in maps:
        if mapping.end <= addr:
            continue
        if mapping.start > addr or addr >= region.end:
            break
        if file is not None:
            _check_mapping(mapping, field, region, file)
        addr = mapping.end
    if addr < region.end:
        raise InvalidRegionError(f"{field}.base_host_virt_addr: {addr:#x} is not mapped in the process")


def _check_mapping(mapping: Mapping, field: str, region: Region, file: FileId) -> None:
    where = f"{field}.base_host_virt_addr: the process maps {mapping}"
    if mapping.file != file:
        raise InvalidRegionError(f"{where}, which is not the region's memfd")
    if mapping.perms[3] != "s":
        raise InvalidRegionError(f"{where}: it is private: map the memfd with MAP_SHARED")
    if mapping.perms[:2] != "rw":
        raise InvalidRegionError(f"{where}: it is not readable and writable")
    offset = mapping.offset_bytes + region.addr - mapping.start
    if offset != region.offset_bytes:
        raise InvalidRegionError(
            f"{field}.offset: {region.offset_bytes} is not what the process maps there ({offset})"
        )


def check_private(maps: Iterable[Mapping], field: str, region: Region) -> None:
    """InvalidRegionError unless the whole region is private anonymous memory of the process."""
    known = list(maps)
    check_mapped(known, field, region, None)
    for mapping in known:
        if mapping.start < region.end and region.addr < mapping.end and not _is_private(mapping):
            raise InvalidRegionError(
                f"{field}.base_host_virt_addr: the process maps {mapping}, which is not private anonymous"
                " memory: use vmmswap's own message, which can swap shared memory out, too"
            )


def _is_private(mapping: Mapping) -> bool:
    """A VMM may forbid itself memory that is not plugged in: whether it can be read now says nothing."""
    return mapping.perms[2:] == "-p" and mapping.file.inode == 0


def is_mapped(maps: Iterable[Mapping], addr: int) -> bool:
    return any(mapping.start <= addr < mapping.end for mapping in maps)


def find_unlisted(
    maps: Iterable[Mapping], guest: Sequence[Region], files: Sequence[FileId], listed: Iterable[Region]
) -> tuple[Mapping, ...]:
    """Mappings of guest memory at addresses that are in no listed region.

    guest: all of the VM's memory, of which file and offsets count; files: each of its regions' file; listed:
    the process's own regions, of which the addresses count. A read of a hole through an unlisted mapping
    makes a page of zeros with no event, so memory must not be swapped out while there is one.
    """
    spans = sorted((region.addr, region.end) for region in listed)

    def is_listed(start: int, end: int) -> bool:
        for span_start, span_end in spans:
            if span_start <= start < span_end:
                start = span_end
        return start >= end

    def is_unlisted(mapping: Mapping) -> bool:
        for region, file in zip(guest, files, strict=True):
            if mapping.file != file:
                continue
            to_addr = mapping.start - mapping.offset_bytes
            start = max(mapping.start, region.offset_bytes + to_addr)
            end = min(mapping.end, region.end_offset + to_addr)
            if start < end and not is_listed(start, end):
                return True
        return False

    return tuple(mapping for mapping in maps if is_unlisted(mapping))
