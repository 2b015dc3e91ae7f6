# SPDX-License-Identifier: GPL-2.0-or-later
"""All watches of a VM wait for its beat, so it comes whatever fails."""

import asyncio

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
