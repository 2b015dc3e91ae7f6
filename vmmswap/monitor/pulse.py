# SPDX-License-Identifier: GPL-2.0-or-later
"""When one VM's watches look again: all at the same beat, so that an idle VM costs one wake-up and not one
for each of them.

Beats come each second while something happens. When nothing does, the pauses between them double, up to a
minute. Something happens when the engine's counters change, or when somebody says so (stir): an event of the
engine, an order, a change of what the VM is.

At a beat, a look of another monitor is as good as one of ours if it began within the last half of the pause
(host_looks.py). So what a look missed is seen by one that begins a minute and a half later, at most. Before
the first beat it may be from since this process started: where all monitors start anew, one serves all.

While nothing happens, most watches would find at each beat what they found at the last one, and to wake up
all of them takes most of a beat. So they wait for a change(): at a quiet beat one glance asks for all of them
what they would look at (glance.py), and they are woken up only if that is not what it was when they looked.
They look a moment after the glance, and what it saw may be gone just then, and come again for good. So they
look at the same thing twice before they sleep on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from vmmswap.engine import Engine
from vmmswap.errors import NoSuchVMError
from vmmswap.later import asyncio
from vmmswap.monitor.guard import Failures, log_failure
from vmmswap.monitor.looks import REST
from vmmswap.monitor.together import Together, Waits

FIRST_S = 1.0
LONGEST_S = 60.0
_GLANCE_S = 1.0  # for what a glance looks at, another process may keep it waiting
_STARTED_S = time.monotonic()


class Pulse:
    """Of one VM. There is no timer while nobody waits for a beat."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen: object = None
        self._pause_s = FIRST_S
        self._is_stirred = True
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: set[asyncio.Future[None]] = set()  # for the next beat
        self._watching: set[asyncio.Future[None]] = set()  # for a change
        self._waiters: set[asyncio.Task[None] | None] = set()  # those that wait for it
        self._lookers: set[asyncio.Task[None] | None] = set()  # that have waited, and look now
        # Is asked at a quiet beat for what to call on a thread. None, or None as its result: look.
        self.glance: Callable[[], Callable[[], object] | None] = lambda: None
        self._glanced: object = None  # what it saw before those that watch looked last; None: look
        self._have_looked_twice = False  # since it sees that
        self._glancing: asyncio.Future[object] | None = None
        self._late: asyncio.TimerHandle | None = None
        self._failures = Failures("cannot see whether anything has changed")
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
        await self._wait(self._waiting)

    async def change(self) -> None:
        """Return at the next beat, but not while a glance shows what it showed before the caller's last look.
        If a look fails, forget() before.
        """
        task = asyncio.current_task()
        if task not in self._lookers:  # it may have missed what the last glance saw
            self.forget()
        self._waiters.add(task)
        try:
            await self._wait(self._watching)
        finally:
            self._waiters.discard(task)

    async def _wait(self, waiting: set[asyncio.Future[None]]) -> None:
        waiter = asyncio.get_running_loop().create_future()
        waiting.add(waiter)
        try:
            self._start_timer()
            await waiter
        finally:
            waiting.discard(waiter)
            if not self._waiting and not self._watching and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._pause_s, self._beat)

    async def rest(self, took_s: float) -> None:
        """As change(), after a look that took so long, once it has rested long enough."""
        loop = asyncio.get_running_loop()
        rested_s = loop.time() + REST * took_s
        await self.change()
        while loop.time() < rested_s:
            await self.beat()

    def forget(self) -> None:
        """Somebody could not look: all look at the next beat."""
        self._glanced = None

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
        _wake_up(self._waiting)
        if self.is_quiet:
            self._start_glance()
        else:
            self._look_at_all(None)
        if self._watching:
            self._start_timer()

    def _start_glance(self) -> None:
        try:
            glance = self.glance() if self._glancing is None else None
            if glance is None:
                self._look_at_all(None)
                return
            self._glancing = self.together.ask(glance, waits=Waits.FOR_ANYBODY)
        except Exception as error:
            self._cannot_glance(error)
            return
        self._glancing.add_done_callback(self._take_glance)
        self._late = asyncio.get_running_loop().call_later(_GLANCE_S, self._look_at_all, None)

    def _take_glance(self, glancing: asyncio.Future[object]) -> None:
        self._glancing = None
        if self._late is not None:
            self._late.cancel()
        if glancing.cancelled():
            return
        if (error := glancing.exception()) is not None:
            self._cannot_glance(error)
            return
        is_new = glancing.result() is None or glancing.result() != self._glanced
        if is_new or not self._have_looked_twice:
            self._look_at_all(glancing.result())
        self._have_looked_twice = not is_new

    def _cannot_glance(self, error: BaseException) -> None:
        """Whatever failed: those that watch look all the same."""
        self._look_at_all(None)
        if isinstance(error, Exception) and not isinstance(error, NoSuchVMError):
            self._failures.log(error)

    def _look_at_all(self, glanced: object) -> None:
        """Wake up those that watch: they look now. glanced: what a glance has seen before."""
        self._glanced = glanced
        self._lookers = set(self._waiters)
        _wake_up(self._watching)

    def _look(self) -> object:
        try:
            return self._engine.activity()
        except NoSuchVMError:
            return None
        except Exception as error:  # whatever failed: those that wait look all the same
            log_failure("cannot see whether anything happens", error)
            return None


def _wake_up(waiting: set[asyncio.Future[None]]) -> None:
    for waiter in waiting:
        if not waiter.done():
            waiter.set_result(None)
    waiting.clear()
