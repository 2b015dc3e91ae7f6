# SPDX-License-Identifier: GPL-2.0-or-later
"""What the write budget tells the engine, in the moments in which it does not know enough."""

import asyncio
import os
import time
from contextlib import asynccontextmanager

import pytest

from vmmswap.config import Config
from vmmswap.config_values import in_bytes
from vmmswap.monitor import ledger
from vmmswap.monitor.ledger import Ledger
from vmmswap.monitor.write_budget import Place, WriteBudget

MIB = 1 << 20


class Engine:
    """Counts what is written, and how much may be."""

    def __init__(self, fd):
        self.page_map_fd = fd
        self.written_bytes = 0
        self.limit = None

    def limit_writes(self, max_bytes):
        self.limit = max_bytes

    def write(self, size):
        if self.limit is None or self.written_bytes + size <= self.limit:
            self.written_bytes += size


class Pulse:
    """Beats fast."""

    async def beat(self):
        await asyncio.sleep(0.001)

    change = beat

    def forget(self):
        pass


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "web.written", tmp_path / "swap")


@asynccontextmanager
async def budget_of(place, text):
    fd = os.memfd_create("page map")
    engine = Engine(fd)
    budget = WriteBudget(engine, Pulse(), place, lambda: Config(write_budget_per_day=text))
    try:
        yield engine, budget
    finally:
        budget.close()
        os.close(fd)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def test_what_is_written_while_the_vm_ends_is_charged(place):
    place.swap_dir.mkdir()
    ledger.write(place.path, Ledger({int(time.time()) // 3600: 0}).to_text())

    async def end():
        async with budget_of(place, "100M") as (engine, budget):
            await budget.ready()
            engine.write(3 * MIB)
            budget.close()
            engine.write(5 * MIB)  # its threads have not ended yet
            budget.save()
            return engine.written_bytes

    written = asyncio.run(end())
    assert ledger.read(place.path).written_today(int(time.time()) // 3600) == written


def test_a_swap_directory_that_cannot_be_looked_at_gives_no_budget_until_it_can(place):
    async def wait():
        async with budget_of(place, "50%") as (engine, budget):
            await asyncio.sleep(0.05)  # nothing can be waited for: nothing happens
            assert engine.limit == 0
            place.swap_dir.mkdir()
            await budget.ready()
            assert engine.limit == 0  # there is no ledger
            assert budget.written_today() > 0

    asyncio.run(wait())


def test_a_budget_is_known_once_its_swap_directory_is_there(place):
    ledger.write(place.path, Ledger().to_text())

    async def wait():
        async with budget_of(place, "50%") as (engine, budget):
            await budget.ready()
            assert engine.limit == 0
            place.swap_dir.mkdir()
            await until(lambda: engine.limit)

    asyncio.run(wait())


def test_a_failure_does_not_end_the_keeping_of_the_ledger(place):
    place.swap_dir.mkdir()
    ledger.write(place.path, Ledger().to_text())

    async def fail():
        async with budget_of(place, "100M") as (engine, budget):
            await budget.ready()
            limited, fails = engine.limit_writes, asyncio.Event()

            def limit_writes(_max_bytes):
                fails.set()
                raise MemoryError

            engine.limit_writes = limit_writes
            await fails.wait()
            engine.limit_writes = limited
            engine.limit = None
            await until(lambda: engine.limit)

    asyncio.run(fail())


def test_a_limit_that_could_not_be_lifted_is_lifted_later(place):
    """Without a budget the watch sleeps until something changes, and nothing does."""
    is_forgotten = asyncio.Event()

    class Asleep(Pulse):
        async def change(self):
            await is_forgotten.wait()
            is_forgotten.clear()

        def forget(self):
            is_forgotten.set()

    async def lift():
        fd = os.memfd_create("page map")
        engine, config = Engine(fd), [Config(write_budget_per_day="100M")]
        budget = WriteBudget(engine, Asleep(), place, lambda: config[0])
        await budget.ready()
        limit_writes, fails = engine.limit_writes, iter(range(3))

        def fail(max_bytes):
            if max_bytes is None and next(fails, None) is not None:
                raise MemoryError
            limit_writes(max_bytes)

        engine.limit_writes = fail
        config[0] = Config()
        await until(lambda: engine.limit is None)
        budget.close()
        os.close(fd)

    place.swap_dir.mkdir()
    ledger.write(place.path, Ledger().to_text())
    asyncio.run(lift())


def test_no_size_is_too_large_for_the_engine():
    assert in_bytes("999999999999999T", 0) == 1 << 62
    assert in_bytes("4T", 0) == 4 << 40
