# SPDX-License-Identifier: GPL-2.0-or-later
"""Bounds on what waits, so that nobody's calls keep another's from being served, least of all root's.

The bus allows a connection 128 replies that are still to come, and refuses its calls beyond. A reply that
its caller has given up on counts until it comes. So whoever calls another service for somebody takes a slot
first, and gives it back with the reply. The slots of all kinds together stay below 128: see BUDGET.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from vmmswap.errors import BusyError


@dataclass(frozen=True, slots=True)
class Room:
    """How many may wait. `shared`: of all users but root together; `per_uid`: of one of them."""

    shared: int
    per_uid: int
    for_root: int


CALLS_PER_SENDER = 64
CALLS = Room(1024, 256, 1024)  # in one service
PASSWORDS = Room(16, 4, 0)  # polkit, which may ask the user: up to two minutes
QUESTIONS = Room(16, 4, 0)  # polkit, which may not
CHANGES = Room(12, 4, 24)  # monitors that answer when all is done
READS = Room(12, 4, 12)  # monitors that answer at once, if they live
JOBS = Room(12, 3, 12)  # systemd
BUDGET = (PASSWORDS, QUESTIONS, CHANGES, READS, JOBS)
OWN_CALLS = 4  # for nobody's call: to know what a new VM is like


@dataclass(frozen=True, slots=True)
class Waiter:
    """For whom something waits: a unique name on the bus, and its uid."""

    name: str
    uid: int


waiter: ContextVar[Waiter | None] = ContextVar("waiter", default=None)  # whose call this task answers


class Places:
    """Places that are taken or refused at once. root has as many as all others together."""

    def __init__(self, room: Room, what: str) -> None:
        self._room = room
        self._what = what
        self._taken: Counter[int] = Counter()

    def take(self, uid: int) -> Callable[[], None]:
        """Take a place; what gives it back. BusyError if there is none left for this uid."""
        mine, shared = self._taken[uid], self._taken.total() - self._taken[0]
        is_full = mine >= self._room.per_uid or shared >= self._room.shared
        if mine >= self._room.for_root if uid == 0 else is_full:
            raise BusyError(
                f"{mine} {self._what} of uid {uid} are waiting, and {shared} of all users: call again later"
            )
        self._taken[uid] += 1
        return lambda: self._give_back(uid)

    @contextlib.contextmanager
    def one(self, uid: int) -> Iterator[None]:
        """The same for a block."""
        give_back = self.take(uid)
        try:
            yield
        finally:
            give_back()

    def _give_back(self, uid: int) -> None:
        self._taken[uid] -= 1
        if not self._taken[uid]:
            del self._taken[uid]


class Slots:
    """Slots that are waited for in turn, first for one of the uid's own, then for one of all users'."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._shared = asyncio.Semaphore(room.shared)
        self._root = asyncio.Semaphore(room.for_root)
        self._own = asyncio.Semaphore(OWN_CALLS)
        self._by_uid: weakref.WeakValueDictionary[int, asyncio.Semaphore] = weakref.WeakValueDictionary()

    def is_free(self, uid: int | None) -> bool:
        """True if take() would not wait."""
        if not uid:
            return not (self._own if uid is None else self._root).locked()
        own = self._by_uid.get(uid)
        return not self._shared.locked() and (own is None or not own.locked())

    async def take(self, uid: int | None) -> Callable[[], None]:
        """Wait for a slot; what gives it back. uid None: for no caller."""
        if not uid:
            semaphore = self._own if uid is None else self._root
            await semaphore.acquire()
            return semaphore.release
        own = self._by_uid.setdefault(uid, asyncio.Semaphore(self._room.per_uid))
        await own.acquire()
        try:
            await self._shared.acquire()
        except BaseException:
            own.release()
            raise

        def give_back() -> None:
            self._shared.release()
            own.release()

        return give_back
