# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks that a process maps what its message claims: /proc/PID/maps against regions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vmmswap.errors import AccessDeniedError, InvalidRegionError, NotSupportedError, ProtocolError
from vmmswap.handoff.region import Region
from vmmswap.linux import maps
from vmmswap.linux.files import FileId
from vmmswap.linux.maps import Mapping, read_mappings


def read_maps(pid: int) -> list[Mapping]:
    """The process's mappings by address. Takes its mmap lock, so it may wait: call it on a thread."""
    try:
        return read_mappings(pid)
    except PermissionError:
        raise AccessDeniedError(
            f"/proc/{pid}/maps may not be read: run the monitor as root or with CAP_SYS_PTRACE"
        ) from None
    except (FileNotFoundError, ProcessLookupError):
        raise ProtocolError(f"the process {pid} has ended") from None


def flags_of_mappings(pid: int) -> Iterator[tuple[Mapping, frozenset[bytes]]]:
    """Each mapping with the kernel's flags. Walks all page tables. AccessDeniedError, or NotSupportedError if
    the process has ended.
    """
    try:
        yield from maps.flags_of_mappings(pid)
    except PermissionError:
        raise AccessDeniedError(f"/proc/{pid}/smaps may not be read: run the monitor as root") from None
    except (FileNotFoundError, ProcessLookupError):
        raise NotSupportedError(f"process {pid} has ended") from None


def check_mapped(mappings: Iterable[Mapping], field: str, region: Region, file: FileId | None) -> None:
    """InvalidRegionError unless the process maps the whole region: shared and writable if it is of a file."""
    addr = region.addr
    for mapping in mappings:
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
    where = f"{field}.base_host_virt_addr: the process maps {mapping.place}"
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


def check_private(mappings: Iterable[Mapping], field: str, region: Region, *, advice: str) -> None:
    """InvalidRegionError unless the whole region is private anonymous memory of the process."""
    known = list(mappings)
    check_mapped(known, field, region, None)
    for mapping in known:
        if mapping.start < region.end and region.addr < mapping.end and not _is_private(mapping):
            raise InvalidRegionError(
                f"{field}.base_host_virt_addr: the process maps {mapping.place}, which is not private"
                f" anonymous memory: {advice}"
            )


def _is_private(mapping: Mapping) -> bool:
    """A VMM may forbid itself memory that is not plugged in: whether it can be read now says nothing."""
    return mapping.perms[2:] == "-p" and mapping.file.inode == 0


def is_mapped(mappings: Iterable[Mapping], addr: int) -> bool:
    return any(mapping.start <= addr < mapping.end for mapping in mappings)


def find_unlisted(
    mappings: Iterable[Mapping], guest: Sequence[Region], files: Sequence[FileId], listed: Iterable[Region]
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

    return tuple(mapping for mapping in mappings if is_unlisted(mapping))
