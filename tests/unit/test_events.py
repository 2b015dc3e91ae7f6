# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap/monitor/events.py: no event is lost to an error in handling another, or itself."""

import asyncio
import time

import pytest

from vmmswap.engine import Engine, EngineConfig, Job, JobDone, SwapOutOptions
from vmmswap.monitor.events import EventPump

DEADLINE_S = 60.0


@pytest.fixture
def engine(tmp_path):
    made = Engine(EngineConfig(swap_dir=tmp_path))
    yield made
    made.close()


def end_jobs(engine, count):
    """So many jobs, of a VM without memory, whose ends nobody has taken yet."""
    for _ in range(count):
        engine.start_trim(SwapOutOptions())
        end_s = time.monotonic() + DEADLINE_S
        while engine.stats().job is not Job.NONE:
            assert time.monotonic() < end_s
            time.sleep(0.001)


class Handler:
    """Fails when it is called for the nth time, for each n given."""

    def __init__(self, *failing, error=None):
        self.failing = failing
        self.error = error
        self.called = 0
        self.handled = []

    def __call__(self, event):
        self.called += 1
        if self.called in self.failing:
            raise self.error
        self.handled.append(event)

    async def wait(self, count):
        async with asyncio.timeout(DEADLINE_S):
            while len(self.handled) < count:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("error", [OSError(24, "no fd left"), KeyError("a bug")])
async def test_an_error_loses_neither_the_later_events_nor_its_own(engine, error, caplog):
    end_jobs(engine, 3)
    handler = Handler(1, 4, error=error)
    pump = EventPump(engine, handler)
    pump.start()
    await handler.wait(3)
    pump.stop()
    assert handler.called == 5, "the first one failed twice"
    assert all(isinstance(event, JobDone) for event in handler.handled)
    assert len(caplog.records) == 2


async def test_what_ends_the_vm_ends_the_pump(engine):
    end_jobs(engine, 2)
    handler = Handler()
    pump = EventPump(engine, lambda event: (handler(event), pump.stop()))
    pump.start()
    await handler.wait(1)
    pump.take()
    assert len(handler.handled) == 1
