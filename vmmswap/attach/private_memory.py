# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of a process's mappings are guest memory that is private and anonymous, as QEMU's is by default.

Such memory has no name. What a VMM does not want its children to have (MADV_DONTFORK) is its guest's: QEMU
says so of each block of guest memory, and of nothing else that can be read and written. Neither C libraries
nor the kernel make such mappings, so heaps and stacks are no candidates. To take one too many, video memory
say, does no harm: its pages are moved and served as all others. If there is a QMP socket, QEMU itself says
which of them are RAM: `ram_blocks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vmmswap.attach.target import Target
from vmmswap.errors import AccessDeniedError, NotSupportedError
from vmmswap.handoff.region import Region, private_region
from vmmswap.linux.maps import HUGETLB, NOT_FORKED, Mapping, flags_of_mappings

__all__ = ["Seen", "find"]


@dataclass(frozen=True, slots=True)
class Seen:
    """A private anonymous mapping; refusal: why it is no guest memory, or cannot be taken; empty: it is.
    note: why it is taken.
    """

    mapping: Mapping
    refusal: str
    note: str = "private, and kept from forked children"

    @property
    def region(self) -> Region:
        return private_region(self.mapping.start, self.mapping.size_bytes)


def may_be(mapping: Mapping) -> bool:
    return mapping.perms[2:] == "-p" and mapping.perms[:2] == "rw" and mapping.is_anonymous


def find(target: Target, min_bytes: int) -> list[Seen]:
    """All private anonymous mappings that can be read and written and are this large, by address.
    AccessDeniedError, or NotSupportedError if the process has ended.
    """
    return [seen for seen in _joined(_look(target)) if seen.mapping.size_bytes >= min_bytes]


def _look(target: Target) -> Iterator[Seen]:
    try:
        for mapping, flags in flags_of_mappings(target.pid):
            if may_be(mapping):
                yield Seen(mapping, _refusal(flags))
    except PermissionError:
        raise AccessDeniedError(
            f"/proc/{target.pid}/smaps may not be read: run the monitor as root or with CAP_SYS_PTRACE"
        ) from None
    except (FileNotFoundError, ProcessLookupError):
        raise NotSupportedError(f"{target} has ended") from None


def _refusal(flags: frozenset[bytes]) -> str:
    if HUGETLB in flags:
        return "hugetlb: huge pages cannot be swapped out. Use normal pages"
    if NOT_FORKED not in flags:
        return "private memory that forked children get (no MADV_DONTFORK), as no guest memory of QEMU's"
    return ""


def _joined(seen: Iterable[Seen]) -> list[Seen]:
    """Without the seams that madvise() makes."""
    joined: list[Seen] = []
    for item in seen:
        last = joined[-1] if joined else None
        if last and (last.mapping.end, last.refusal) == (item.mapping.start, item.refusal):
            first = last.mapping
            both = Mapping(first.start, item.mapping.end, first.perms, 0, first.file)
            joined[-1] = Seen(both, item.refusal)
        else:
            joined.append(item)
    return joined
