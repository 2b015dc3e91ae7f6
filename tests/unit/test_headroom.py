# SPDX-License-Identifier: GPL-2.0-or-later
"""What a swap-in is granted: something whenever it may run and anything is out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable

import pytest

from vmmswap.monitor.operations import headroom
from vmmswap.monitor.operations.headroom import Headroom, RoomWatch

MIB = 1 << 20
PAGE = 4096


def watch(monkeypatch: pytest.MonkeyPatch, *, out_pages: int, room_bytes: int) -> tuple[RoomWatch, list[int]]:
    granted: list[int] = []
    monkeypatch.setattr(headroom, "look", lambda _pids, _mounts: Headroom(room_bytes, "a limit"))
    return RoomWatch(list, lambda: out_pages, granted.append, lambda: None), granted


@pytest.mark.parametrize("out_pages", [1, 2, 511, 512, 100_000])
@pytest.mark.parametrize("room_bytes", [4 * MIB, 100 * MIB, 4 << 30])
def test_some_is_granted(monkeypatch: pytest.MonkeyPatch, out_pages: int, room_bytes: int) -> None:
    room, granted = watch(monkeypatch, out_pages=out_pages, room_bytes=room_bytes)
    assert room.has_room()
    [pages] = granted
    assert min(out_pages, 512) <= pages <= room_bytes // 2 // PAGE


def test_one_page_needs_room_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    room, granted = watch(monkeypatch, out_pages=1, room_bytes=2 * PAGE)
    assert room.has_room()
    assert granted == [1]


def test_nothing_is_granted_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    room, granted = watch(monkeypatch, out_pages=1, room_bytes=2 * PAGE - 1)
    assert not room.has_room()
    assert granted == [0]
    assert "a limit" in room.message


def test_with_nothing_out_no_room_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    room, _ = watch(monkeypatch, out_pages=0, room_bytes=-MIB)
    assert room.has_room()


def test_what_looks_at_all_processes_is_no_work_of_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a swap-in starts some are looked at, which allows for one window; then all, on a thread."""
    looked: list[tuple[int, bool]] = []
    granted: list[int] = []
    pids = list(range(1, 1001))

    def look(those: Iterable[int], _mounts: object) -> Headroom:
        looked.append((len(list(those)), threading.current_thread() is threading.main_thread()))
        return Headroom(4 << 30 if len(looked) < 3 else -MIB, "a limit")

    async def run() -> None:
        is_short = asyncio.Event()
        room = RoomWatch(lambda: pids, lambda: 1 << 30, granted.append, is_short.set)
        assert room.has_room()
        room.start()
        await asyncio.wait_for(is_short.wait(), 60)

    monkeypatch.setattr(headroom, "look", look)
    asyncio.run(run())
    assert looked == [(headroom.AT_ONCE, True), (1000, False), (1000, False)]
    assert granted == [2 * MIB // PAGE, (2 << 30) // PAGE, 0]


def test_a_look_that_fails_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The swap-in would wait for ever for what it is granted."""
    granted: list[int] = []
    failures = iter([ValueError("a line of memory.stat that nobody knows"), OSError(24, "no fd left")])

    def look(_pids: object, _mounts: object) -> Headroom:
        on_thread = threading.current_thread() is not threading.main_thread()
        if on_thread and (failure := next(failures, None)) is not None:
            raise failure
        return Headroom(4 * MIB if not on_thread else -MIB, "a limit")

    async def run() -> None:
        is_short = asyncio.Event()
        room = RoomWatch(list, lambda: 100_000, granted.append, is_short.set)
        assert room.has_room()
        room.start()
        await asyncio.wait_for(is_short.wait(), 60)

    monkeypatch.setattr(headroom, "look", look)
    monkeypatch.setattr(headroom, "_LONGEST_S", 0.001)
    asyncio.run(run())
    assert granted == [2 * MIB // PAGE, 0]


def test_who_stopped_is_granted_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a look that was under way."""
    granted: list[int] = []
    looking, goes_on = threading.Event(), threading.Event()

    def look(_pids: object, _mounts: object) -> Headroom:
        if threading.current_thread() is not threading.main_thread():
            looking.set()
            assert goes_on.wait(60)
        return Headroom(4 * MIB, "a limit")

    async def run() -> None:
        room = RoomWatch(list, lambda: 100_000, granted.append, lambda: None)
        assert room.has_room()
        room.start()
        assert await asyncio.to_thread(looking.wait, 60)
        room.stop()
        goes_on.set()

    monkeypatch.setattr(headroom, "look", look)
    asyncio.run(run())
    assert len(granted) == 1
