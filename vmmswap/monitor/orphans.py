# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the parent of an unknown process's userfaultfd, of which we know only where it is registered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vmmswap.engine import Range
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.linux.userfaultfd import is_registered, register_shmem
from vmmswap.monitor.keep.manifest import ProcessRecord

_LOOKS = 64  # places of a range to look at, at most


def parent_of(uffd: int, processes: Iterable[ProcessRecord], *, vmm_registers: bool) -> ProcessRecord | None:
    """Return the process whose child an orphan is, with the part of its ranges that the child has. The child
    has them at its parent's addresses; parts that the parent keeps from children (MADV_DONTFORK) are missing.
    None: the child has ended, or is not one of the VM's. vmm_registers: then it is not registered here.
    """
    known = [item for item in processes if item.ranges]
    likest = max(known, key=lambda item: _likeness(uffd, item), default=None)
    candidates = [likest] if likest is not None and any(_likeness(uffd, likest)) else known
    for item in candidates:
        has = _may_be_registered if vmm_registers else _has
        if ranges := tuple(part for part in item.ranges if has(uffd, Range(*part))):
            return replace(item, ranges=ranges)
    return None


def _likeness(uffd: int, process: ProcessRecord) -> tuple[int, int]:
    """Count the pages in ranges that look registered all over, and in ranges that do so in places. A child of
    another process may have something registered there too.
    """
    whole = some = 0
    for part in (Range(*item) for item in process.ranges):
        looks = _looks(uffd, part)
        if all(looks):
            whole += part.pages
        elif any(looks):
            some += part.pages
    return whole, some


def _has(uffd: int, part: Range) -> bool:
    """True if guest memory can be there; it is registered from here on, if so. Nothing that is out may be
    touched unseen in between, so this must not unregister what it finds.
    """
    try:
        register_shmem(uffd, part.addr, part.pages * PAGE_SIZE)
    except OSError:
        return _may_be_registered(uffd, part)  # a part is, and something else is there, too
    return True


def _may_be_registered(uffd: int, part: Range) -> bool:
    """True also if that cannot be told: it must not be given up then."""
    return any(look is not False for look in _looks(uffd, part))


def _looks(uffd: int, part: Range) -> list[bool | None]:
    step = part.pages // _LOOKS + 1
    return [is_registered(uffd, part.addr + page * PAGE_SIZE) for page in range(0, part.pages, step)]
