# SPDX-License-Identifier: GPL-2.0-or-later
"""All watches of a VM wait for its beat, so it comes whatever fails. While a glance shows them nothing new,
those that wait for a change sleep.
"""

import asyncio
import contextlib
import threading
import time

import pytest

from vmmswap.monitor import pulse
from vmmswap.monitor.pulse import Pulse
from vmmswap.monitor.together import Together


class FailingEngine:
    def activity(self):
        raise MemoryError


class QuietEngine:
    def activity(self):
        return (0,)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(pulse, "FIRST_S", 0.001)
    monkeypatch.setattr(pulse, "LONGEST_S", 0.001)


def test_a_look_that_fails_stops_no_watch():
    async def wait():
        beats = Pulse(FailingEngine())
        for _ in range(3):
            await asyncio.wait_for(beats.beat(), 60)
            await asyncio.wait_for(beats.change(), 60)

    asyncio.run(wait())


def test_before_the_first_beat_a_look_may_be_as_old_as_the_process(monkeypatch):
    """A successor serves first, and may wait for its turn to start: its first look comes much later."""
    monkeypatch.setattr(pulse, "LONGEST_S", 60.0)
    beats = Pulse(FailingEngine())
    monkeypatch.setattr(pulse, "_STARTED_S", time.monotonic() - 20)
    assert 20 <= beats.max_age_s <= pulse.LONGEST_S / 2
    monkeypatch.setattr(pulse, "_STARTED_S", time.monotonic() - 1000)
    assert beats.max_age_s == pulse.LONGEST_S / 2
    monkeypatch.setattr(beats, "_pause_s", 0.001)
    asyncio.run(asyncio.wait_for(beats.beat(), 60))
    assert beats.max_age_s == 0.001 / 2


class AtOnce:
    """Instead of a thread, which may have no answer before the next beat."""

    def ask(self, function, **_waits):
        answer = asyncio.get_running_loop().create_future()
        try:
            answer.set_result(function())
        except Exception as error:
            answer.set_exception(error)
        return answer


class Watched:
    """A pulse, what a glance sees, and how often a watch has looked."""

    def __init__(self):
        self.sees = "nobody"
        self.glances = self.looks = 0
        self.pulse = Pulse(QuietEngine())
        self.pulse.glance = lambda: self.glance
        self.pulse.together = AtOnce()

    def glance(self):
        self.glances += 1
        if isinstance(self.sees, Exception):
            raise self.sees
        return self.sees

    async def watch(self):
        while True:
            await self.pulse.change()
            self.looks += 1

    async def glances_more(self, count=10):
        """Return after so many glances, and how many looks there were meanwhile."""
        looks, until = self.looks, self.glances + count
        while self.glances < until:
            await self.pulse.beat()
        return self.looks - looks

    async def until_looked(self):
        looks = self.looks
        async with asyncio.timeout(60):
            while self.looks == looks:
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def watching():
    watched = Watched()
    task = asyncio.create_task(watched.watch())
    async with asyncio.timeout(60):
        await watched.glances_more(3)
        yield watched
    task.cancel()


def test_while_a_glance_shows_nothing_new_only_the_beat_goes_on():
    async def run():
        async with watching() as watched:
            assert await watched.glances_more() == 0

    asyncio.run(run())


def test_what_a_glance_shows_is_looked_at_and_then_no_more():
    async def run():
        async with watching() as watched:
            watched.sees = "a stranger"
            await watched.until_looked()
            await watched.glances_more(2)
            assert await watched.glances_more() == 0
            watched.sees = "nobody"
            await watched.until_looked()

    asyncio.run(run())


def test_what_a_look_just_missed_is_looked_at_when_it_is_back():
    """A process that maps memory, unmaps it before the look, and maps it again at its old place."""

    async def run():
        async with watching() as watched:
            seen = []

            async def watch():
                while True:
                    await watched.pulse.change()
                    seen.append(watched.sees)
                    watched.sees = comes_back or watched.sees

            def glance():
                saw = watched.glance()
                if not seen:
                    watched.sees = "nobody"
                return saw

            comes_back = ""
            task = asyncio.create_task(watch())
            await watched.until_looked()
            await watched.glances_more(3)
            seen.clear()
            watched.sees = comes_back = "a stranger"
            watched.pulse.glance = lambda: glance
            while "a stranger" not in seen:
                await watched.pulse.beat()
            assert seen[0] == "nobody"
            task.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("sees", [None, OSError(24, "no fd left"), MemoryError()])
def test_whoever_cannot_glance_looks_each_time(sees):
    async def run():
        async with watching() as watched:
            watched.sees = sees
            for _ in range(5):
                await watched.until_looked()
            watched.sees = "nobody"
            await watched.glances_more(3)
            assert await watched.glances_more() == 0

    asyncio.run(run())


def test_who_looks_while_a_glance_shows_something_looks_again():
    """Its look may have begun before, and may take as long as some process likes."""

    async def run():
        async with watching() as watched:
            busy, is_free = asyncio.Event(), asyncio.Event()
            looks = []

            async def watch():
                while True:
                    await watched.pulse.change()
                    seen = watched.sees
                    busy.set()
                    await is_free.wait()
                    looks.append(seen)

            task = asyncio.create_task(watch())
            await busy.wait()
            watched.sees = "a stranger"
            await watched.glances_more(3)
            is_free.set()
            while "a stranger" not in looks:
                await watched.pulse.beat()
            task.cancel()

    asyncio.run(run())


def test_a_look_that_failed_is_done_again():
    async def run():
        async with watching() as watched:
            watched.pulse.forget()
            await watched.until_looked()

    asyncio.run(run())


def test_what_was_seen_before_something_happened_counts_no_more():
    async def run():
        async with watching() as watched:
            watched.pulse.stir()
            await watched.until_looked()  # because it was stirred
            await watched.until_looked()  # because it is the first glance since then
            await watched.glances_more(2)
            assert await watched.glances_more() == 0

    asyncio.run(run())


def test_who_keeps_a_glance_waiting_keeps_no_watch(monkeypatch):
    monkeypatch.setattr(pulse, "_GLANCE_S", 0.001)

    async def run():
        async with watching() as watched:
            answers = threading.Event()
            watched.pulse.together = Together()
            watched.pulse.glance = lambda: answers.wait
            try:
                for _ in range(5):
                    await watched.until_looked()
            finally:
                answers.set()

    asyncio.run(run())
