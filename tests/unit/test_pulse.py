# SPDX-License-Identifier: GPL-2.0-or-later
"""All watches of a VM wait for its beat, so it comes whatever fails."""

import asyncio
import time

from vmmswap.monitor import pulse
from vmmswap.monitor.pulse import Pulse


class Engine:
    def stats(self):
        raise MemoryError


def test_a_look_that_fails_stops_no_watch(monkeypatch):
    monkeypatch.setattr(pulse, "FIRST_S", 0.001)

    async def wait():
        beats = Pulse(Engine())
        for _ in range(3):
            await asyncio.wait_for(beats.beat(), 60)

    asyncio.run(wait())


def test_before_the_first_beat_a_look_may_be_as_old_as_the_process(monkeypatch):
    """A successor serves first, and may wait for its turn to start: its first look comes much later."""
    beats = Pulse(Engine())
    monkeypatch.setattr(pulse, "_STARTED_S", time.monotonic() - 20)
    assert 20 <= beats.max_age_s <= pulse.LONGEST_S / 2
    monkeypatch.setattr(pulse, "_STARTED_S", time.monotonic() - 1000)
    assert beats.max_age_s == pulse.LONGEST_S / 2
    monkeypatch.setattr(beats, "_pause_s", 0.001)
    asyncio.run(asyncio.wait_for(beats.beat(), 60))
    assert beats.max_age_s == 0.001 / 2
