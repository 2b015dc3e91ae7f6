# SPDX-License-Identifier: GPL-2.0-or-later
"""When one VM's watches look again: all at the same beat, so that an idle VM costs one wake-up and not one
for each of them.

Beats come each second while something happens. When nothing does, the pauses between them double, up to a
minute. Something happens when the engine's counters change, or when somebody says so (stir): an event of the
engine, an order, a change of what the VM is.

At a beat, a look of another monitor is as good as one of ours if it began within the last half of the pause
(host_looks.py). So what a look missed is seen by one that begins a minute and a half later, at most. Before
the first beat it may be from since this process started: where all monitors start anew, one serves all.
"""

from __future__ import annotations

import time

from vmmswap.engine import Engine
from vmmswap.errors import NoSuchVMError
from vmmswap.later import asyncio
from vmmswap.monitor.guard import log_failure
from vmmswap.monitor.looks import REST
from vmmswap.monitor.together import Together

FIRST_S = 1.0
LONGEST_S = 60.0
_STARTED_S = time.monotonic()


class Pulse:
    """Of one VM. There is no timer while nobody waits for a beat."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen: object = None
        self._pause_s = FIRST_S
        self._is_stirred = True
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self.together = Together()  # what is asked at the same beat
        self._max_age_s: float | None = None  # None: before the first beat
        self.is_quiet = False  # at the last beat: nothing had happened since the one before

    @property
    def max_age_s(self) -> float:
        """At this beat, a look of another monitor that began so long ago does."""
        if self._max_age_s is None:
            return min(LONGEST_S / 2, time.monotonic() - _STARTED_S)
        return self._max_age_s

    async def beat(self) -> None:
        """Return at the next beat."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiting.add(waiter)
        try:
            if self._timer is None:
                self._timer = loop.call_later(self._pause_s, self._beat)
            await waiter
        finally:
            self._waiting.discard(waiter)
            if not self._waiting and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    async def rest(self, took_s: float) -> None:
        """After a look that took so long: return at the first beat for which it has rested long enough."""
        loop = asyncio.get_running_loop()
        rested_s = loop.time() + REST * took_s
        await self.beat()
        while loop.time() < rested_s:
            await self.beat()

    def stir(self) -> None:
        """Something has happened: the next beat comes within a second."""
        self._is_stirred = True
        self._pause_s = FIRST_S
        if self._timer is None:
            return
        loop = asyncio.get_running_loop()
        if self._timer.when() > loop.time() + FIRST_S:
            self._timer.cancel()
            self._timer = loop.call_later(FIRST_S, self._beat)

    def _beat(self) -> None:
        self._timer = None
        seen = self._look()
        self.is_quiet = seen == self._seen and not self._is_stirred
        self._seen, self._is_stirred = seen, False
        self._max_age_s = self._pause_s / 2
        self._pause_s = min(2 * self._pause_s, LONGEST_S) if self.is_quiet else FIRST_S
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting = set()

    def _look(self) -> object:
        """What changes while a guest is awake, a job runs, or the tiers are tended."""
        try:
            stats = self._engine.stats()
        except NoSuchVMError:
            return None
        except Exception as error:  # whatever failed: those that wait look all the same
            log_failure("cannot see whether anything happens", error)
            return None
        return (
            stats.job,
            stats.tracking,
            stats.fault_count,
            stats.swap_pages,
            stats.written_bytes,
            stats.stored_ram_bytes,
            stats.stored_disk_bytes,
        )
