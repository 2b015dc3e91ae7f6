# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap/monitor/operations/turn.py: who has a turn, and for how long."""

import asyncio
import itertools

import pytest

from vmmswap.monitor.operations import turn as turn_module
from vmmswap.monitor.operations.turn import Turn

DEADLINE_S = 60.0


@pytest.fixture
def turns(monkeypatch, tmp_path):
    """Turns of VMs that share a host where one swap-out may run. A minute is short here."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(turn_module, "_STUCK_S", 0.01)
    monkeypatch.setattr(turn_module, "_ASK_S", 0.01)
    made = []

    def make(progress):
        began = asyncio.Event()
        made.append(Turn(lambda: 1, began.set, progress))
        return made[-1], began

    yield make
    for one in made:
        one.release()


async def test_a_swap_out_that_hangs_gives_its_turn_to_the_next(turns):
    hanging, _ = turns(lambda: 17)
    other, began = turns(itertools.count().__next__)
    assert hanging.take()
    assert not other.take()
    async with asyncio.timeout(DEADLINE_S):
        await began.wait()
    hanging.release()
    third, _ = turns(lambda: 17)
    assert not third.take()  # what the one that hangs releases is not the other's


async def test_a_slow_swap_out_keeps_its_turn(turns):
    looks = itertools.count()
    looked = asyncio.Event()

    def come_on():
        now = next(looks)
        if now == 10:
            looked.set()
        return now

    slow, _ = turns(come_on)
    other, began = turns(lambda: 17)
    assert slow.take()
    assert not other.take()
    async with asyncio.timeout(DEADLINE_S):
        await looked.wait()
    assert other.is_waiting
    assert not began.is_set()
    slow.release()
    async with asyncio.timeout(DEADLINE_S):
        await began.wait()
