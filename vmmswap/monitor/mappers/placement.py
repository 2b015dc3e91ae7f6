# SPDX-License-Identifier: GPL-2.0-or-later
"""Compares where a process is known to have guest memory with what it maps now. A piece of that memory is a
Range: an address, the engine's number of the page that is there, and how many pages.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace

from vmmswap.engine import Range
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.monitor.keep.manifest import RegionRecord


def kept(known: Iterable[Range], mapped: Sequence[Range]) -> list[Range]:
    """Return the known pieces that are still mapped: the same pages at the same addresses."""
    return [part for item in known for other in mapped for part in _both(item, other)]


def uncovered(mapped: Iterable[Range], known: Sequence[Range]) -> list[Range]:
    """Return the pieces that are mapped at unknown addresses."""
    left: list[Range] = []
    for item in mapped:
        parts = [item]
        for other in known:
            parts = [rest for part in parts for rest in _without(part, other)]
        left += parts
    return left


def has_all(ranges: Sequence[Range], wanted: Sequence[Range]) -> bool:
    """True if all wanted pages are mapped, at their addresses."""
    return not uncovered(wanted, kept(wanted, ranges))


def joined(ranges: Iterable[Range], starts: Container[int] = ()) -> list[Range]:
    """Sort by address, and join ranges that madvise() and mprotect() have split. If the kernel joins mappings
    while it lists them, one range is listed twice; count it once. starts: pages at which a region begins,
    which is never joined with the one before.
    """
    result: list[Range] = []
    for item in sorted(ranges, key=lambda item: item.addr):
        last = result[-1] if result else None
        begins = item.page_idx in starts and (last is None or item.addr == end_of(last))
        if last is not None and _continues(last, item) and not begins:
            pages = (max(end_of(last), end_of(item)) - last.addr) // PAGE_SIZE
            result[-1] = Range(last.addr, last.page_idx, pages)
        else:
            result.append(item)
    return result


def overlap(one: Range, other: Range) -> bool:
    """True if both contain a common page, whatever its addresses."""
    return one.page_idx < other.page_idx + other.pages and other.page_idx < one.page_idx + one.pages


def end_of(item: Range) -> int:
    """Return the address after its end."""
    return item.addr + item.pages * PAGE_SIZE


def _both(one: Range, other: Range) -> Iterable[Range]:
    start, end = max(one.addr, other.addr), min(end_of(one), end_of(other))
    if start < end and _page_at(one, start) == _page_at(other, start):
        yield Range(start, _page_at(one, start), (end - start) // PAGE_SIZE)


def _without(item: Range, other: Range) -> Iterable[Range]:
    for start, end in (
        (item.addr, min(end_of(item), other.addr)),
        (max(item.addr, end_of(other)), end_of(item)),
    ):
        if start < end:
            yield Range(start, _page_at(item, start), (end - start) // PAGE_SIZE)


def _continues(first: Range, second: Range) -> bool:
    return second.addr <= end_of(first) and _page_at(first, second.addr) == second.page_idx


def _page_at(item: Range, addr: int) -> int:
    return item.page_idx + (addr - item.addr) // PAGE_SIZE


def moved(record: RegionRecord, ranges: Iterable[Range]) -> RegionRecord:
    """Its address is that of its first page in the VMM."""
    for item in ranges:
        if 0 <= record.page_idx - item.page_idx < item.pages:
            return replace(record, addr=item.addr + (record.page_idx - item.page_idx) * PAGE_SIZE)
    return record
