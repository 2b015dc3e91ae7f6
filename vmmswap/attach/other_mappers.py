# SPDX-License-Identifier: GPL-2.0-or-later
"""Which processes besides the VMM map guest memory, and where."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Sequence

from vmmswap.engine import Mapper, mappers_of
from vmmswap.errors import NotSupportedError
from vmmswap.handoff.region import Region
from vmmswap.linux.process import is_same_memory

_log = logging.getLogger("vmmswap.attach")


def other_mappers(
    memfds: Sequence[int],
    guest: Sequence[Region],
    known: Iterable[int],
    *,
    quiet: bool = False,
    only: int | None = None,
) -> dict[int, tuple[Region, ...]]:
    """Where processes other than the known ones map guest memory; or only this one."""
    mappings, unreadable = mappers_of(memfds, None if only is None else [only])
    if unreadable and not quiet and only is None:
        _log.warning(
            "cannot tell if the processes %s map guest memory: their maps may not be read", unreadable
        )
    skipped = set(known)
    found: dict[int, list[Region]] = {}
    for mapping in mappings:
        if not mapping.is_private and mapping.pid not in skipped:
            found.setdefault(mapping.pid, []).extend(_parts(mapping, guest))
    starts = {(region.memfd, region.offset_bytes) for region in guest}
    return {pid: tuple(_joined(parts, starts)) for pid, parts in found.items() if parts}


def one_of_each(found: dict[int, tuple[Region, ...]], known: Iterable[int]) -> dict[int, tuple[Region, ...]]:
    """Without processes that share their address space with a known one, or with one that is kept."""
    kept: dict[int, tuple[Region, ...]] = {}
    for pid, regions in found.items():
        if not any(_is_twin(pid, other) for other in (*known, *kept)):
            kept[pid] = regions
    return kept


def _is_twin(pid: int, other: int) -> bool:
    """True if both share one address space, so that one userfaultfd serves both."""
    try:
        return is_same_memory(pid, other)
    except OSError:
        return False  # one of them has ended, or may not be asked


def _parts(mapping: Mapper, guest: Sequence[Region]) -> Iterable[Region]:
    for region in guest:
        if region.memfd != mapping.file_idx:
            continue
        start = max(mapping.offset_bytes, region.offset_bytes)
        end = min(mapping.offset_bytes + mapping.size_bytes, region.end_offset)
        if start < end:
            yield Region(mapping.addr + start - mapping.offset_bytes, end - start, start, region.memfd)


def _joined(parts: Sequence[Region], starts: Container[tuple[int, int]]) -> list[Region]:
    """Without the seams that madvise() and mprotect() make, but with those where a region of the guest
    begins: neighbours in a file need not be so in the guest. NotSupportedError for memory that is mapped
    twice.
    """
    joined: list[Region] = []
    for part in sorted(parts, key=lambda item: item.addr):
        last = joined[-1] if joined else None
        goes_on = last and (last.end, last.end_offset, last.memfd) == (
            part.addr,
            part.offset_bytes,
            part.memfd,
        )
        if last and goes_on and (part.memfd, part.offset_bytes) not in starts:
            joined[-1] = Region(last.addr, last.size_bytes + part.size_bytes, last.offset_bytes, last.memfd)
        else:
            joined.append(part)
    for idx, one in enumerate(joined):
        for other in joined[:idx]:
            if one.memfd == other.memfd and (
                one.offset_bytes < other.end_offset and other.offset_bytes < one.end_offset
            ):
                raise NotSupportedError(f"guest memory is mapped twice, at {other.addr:#x} and {one.addr:#x}")
    return joined
