# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the kernel may fill memory that is out with zeros, by making a huge page of what surrounds it.

Linux before 6.4 does that to shared memory also where a userfaultfd is registered, and no event tells:
khugepaged where shmem_enabled or a mount's huge= allows huge pages; MADV_COLLAPSE, by whoever maps the memory
or by root through process_madvise, whatever these say. It does not in a mapping with MADV_NOHUGEPAGE, nor in
a process with PR_SET_THP_DISABLE, nor anywhere if shmem_enabled is `deny` (all seen on 6.1). So memory leaves
only where one of these holds for every process that maps it.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vmmswap.engine import try_collapse
from vmmswap.errors import AccessDeniedError, VmmswapError
from vmmswap.handoff.maps import flags_of_mappings
from vmmswap.linux.maps import NO_HUGE_PAGES
from vmmswap.linux.process import status_of
from vmmswap.monitor.spoiled import How, SpoiledError, Spoiler

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_FIXED_IN = (6, 4)


@dataclass(frozen=True, slots=True)
class Mapped:
    """A process that maps guest memory, and where: (start, end) addresses."""

    pid: int
    spans: tuple[tuple[int, int], ...]


def by_process(spans: Iterable[tuple[int, int, int]]) -> list[Mapped]:
    """Collect the pieces (pid, start, end) by process."""
    found: dict[int, list[tuple[int, int]]] = {}
    for pid, start, end in spans:
        found.setdefault(pid, []).append((start, end))
    return [Mapped(pid, tuple(sorted(own))) for pid, own in found.items()]


def kernel_fills_holes() -> bool:
    """True if this kernel fills holes with zeros, found by trying it. If nothing can be collapsed at the
    moment, go by the kernel's version.
    """
    tried = _tried()
    if tried is None:
        _tried.cache_clear()
        return _release() < _FIXED_IN
    return tried


@functools.cache
def _tried() -> bool | None:
    return try_collapse()


def _release() -> tuple[int, int]:
    major, minor = re.match(r"(\d+)\.(\d+)", os.uname().release).groups()  # type: ignore[union-attr]  # is so
    return int(major), int(minor)


def is_denied() -> bool:
    """True if no shared memory of this machine can get huge pages."""
    try:
        return "[deny]" in _SETTING.read_text()
    except OSError:
        return False


def exposed_spans(mapped: Mapped) -> list[tuple[int, int]]:
    """Mappings of guest memory that may get huge pages. Walks page tables: call it on a thread."""
    if _has_none(mapped.pid):
        return []
    try:
        return [
            (mapping.start, mapping.end)
            for mapping, flags in flags_of_mappings(mapped.pid)
            if NO_HUGE_PAGES not in flags and any(mapping.overlaps(*span) for span in mapped.spans)
        ]
    except AccessDeniedError:
        raise
    except VmmswapError:
        return []  # it has ended


def _has_none(pid: int) -> bool:
    """True if the process as a whole gets no huge pages (PR_SET_THP_DISABLE)."""
    try:
        return status_of(pid).get("THP_enabled") == "0"
    except OSError:
        return False


def check(processes: Iterable[Mapped]) -> bool:
    """NotSupportedError if memory that is swapped out may be filled with zeros. True if only the machine's
    setting prevents that: it must stay as it is then. Call it on a thread.
    """
    if not kernel_fills_holes():
        return False
    for mapped in processes:
        if spans := exposed_spans(mapped):
            if is_denied():
                return True
            raise exposed_error(mapped.pid, spans[0][0])
    return False


def exposed_error(pid: int, addr: int, why_not: str = "") -> SpoiledError:
    """why_not: why huge pages could not be forbidden from outside."""
    because = why_not and f" ({why_not})"
    kernel = f"this kernel ({os.uname().release})"
    return SpoiledError(
        Spoiler(pid, How.ALLOWS_HUGE_PAGES),
        f"process {pid} maps guest memory at {addr:#x} with huge pages allowed{because}, and {kernel} fills"
        " what is swapped out with zeros when it makes a huge page there. Do one of these: as root, echo deny"
        f" >{_SETTING}; have the process call madvise(MADV_NOHUGEPAGE) for its guest"
        " memory, or prctl(PR_SET_THP_DISABLE); use Linux 6.4 or newer",
    )
