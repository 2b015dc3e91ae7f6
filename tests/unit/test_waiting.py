# SPDX-License-Identifier: GPL-2.0-or-later
"""Places and slots: nobody's waiting keeps another out, and root has room of its own."""

import asyncio
from contextlib import ExitStack

import pytest

from vmmswap.bus.waiting import Places, Room, Slots
from vmmswap.errors import BusyError

ROOM = Room(shared=4, per_uid=3, for_root=2)


def test_places_of_one_uid_of_all_and_of_root() -> None:
    places = Places(ROOM, "calls")
    with ExitStack() as held:
        for uid in (1, 1, 1, 2):
            held.enter_context(places.one(uid))
        for uid in (1, 2, 3):
            with pytest.raises(BusyError, match=f"calls of uid {uid} are waiting, and 4 of all users"):
                places.take(uid)
        for _ in range(2):
            held.enter_context(places.one(0))
        with pytest.raises(BusyError):
            places.take(0)
    places.take(1)()


async def test_slots_are_waited_for_in_turn_and_root_waits_for_root_only() -> None:
    slots = Slots(ROOM)
    held = [await slots.take(uid) for uid in (1, 1, 1, 2)]
    waiting = [asyncio.create_task(slots.take(uid)) for uid in (1, 3)]
    assert not slots.is_free(1) and not slots.is_free(3)
    assert slots.is_free(0) and slots.is_free(None)
    for _ in range(2):
        held.append(await slots.take(0))
    held.append(await slots.take(None))
    assert not slots.is_free(0)
    held.pop(3)()  # uid 2's: the next is not uid 1, who has as many as he may
    held.append(await waiting[1])
    assert not waiting[0].done()
    held.pop(0)()
    held.append(await waiting[0])
    for give_back in held:
        give_back()
    assert all(slots.is_free(uid) for uid in (None, 0, 1, 2, 3))


async def test_who_gives_up_waiting_holds_nothing() -> None:
    slots = Slots(ROOM)
    held = [await slots.take(uid) for uid in (1, 1, 2, 2)]
    given_up = asyncio.create_task(slots.take(3))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    for give_back in held:
        give_back()
    for give_back in [await slots.take(3) for _ in range(3)]:
        give_back()
