# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory's places in a process, against a model that knows each page by itself."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vmmswap.engine import Range
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.monitor.mappers.placement import end_of, has_all, joined, kept, uncovered

ADDR = 0x7F0000000000


def at(page: int, page_idx: int, pages: int) -> Range:
    return Range(ADDR + page * PAGE_SIZE, page_idx, pages)


@st.composite
def places(draw: st.DrawFn) -> list[Range]:
    """Ranges that do not overlap in addresses, some of them neighbours."""
    found, page = [], 0
    for _ in range(draw(st.integers(0, 5))):
        page += draw(st.integers(0, 2))
        pages = draw(st.integers(1, 4))
        found.append(at(page, draw(st.integers(0, 12)), pages))
        page += pages
    return draw(st.permutations(found))


def model(ranges: list[Range]) -> dict[int, int]:
    """Page number by address."""
    return {item.addr + idx * PAGE_SIZE: item.page_idx + idx for item in ranges for idx in range(item.pages)}


def check(ranges: list[Range], expected: dict[int, int]) -> None:
    """These pages, sorted, with no seam between two that continue each other."""
    assert model(ranges) == expected
    assert sum(item.pages for item in ranges) == len(expected)
    for first, second in itertools.pairwise(ranges):
        assert end_of(first) <= second.addr
        assert (end_of(first), first.page_idx + first.pages) != (second.addr, second.page_idx)


@given(places(), places())
def test_what_is_kept_and_what_is_new(known: list[Range], mapped: list[Range]) -> None:
    before, now = model(known), model(mapped)
    check(joined(known), before)
    check(joined(kept(known, mapped)), {addr: page for addr, page in before.items() if now.get(addr) == page})
    assert has_all(known, mapped) == all(before.get(addr) == page for addr, page in now.items())
    check(joined(uncovered(mapped, known)), {addr: page for addr, page in now.items() if addr not in before})


def test_another_page_at_a_known_address_is_not_kept() -> None:
    assert kept([at(0, 0, 4)], [at(0, 8, 4)]) == []
    assert kept([at(0, 0, 4)], [at(0, 0, 2), at(2, 9, 2)]) == [at(0, 0, 2)]
    assert joined(kept([at(0, 0, 4)], [at(0, 0, 2), at(2, 2, 2)])) == [at(0, 0, 4)]


def test_what_is_listed_twice_is_one() -> None:
    assert joined([at(0, 0, 2), at(0, 0, 4), at(2, 2, 1)]) == [at(0, 0, 4)]
    assert joined([at(0, 0, 4), at(1, 1, 1), at(3, 3, 2)]) == [at(0, 0, 5)]


def test_what_is_of_two_regions_is_not_joined() -> None:
    pieces = [at(0, 0, 2), at(2, 2, 2), at(4, 4, 2)]
    assert joined(pieces, {0, 4}) == [at(0, 0, 4), at(4, 4, 2)]
