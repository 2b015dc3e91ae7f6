# SPDX-License-Identifier: GPL-2.0-or-later
"""What a swap-in is granted: something whenever it may run and anything is out."""

from __future__ import annotations

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
