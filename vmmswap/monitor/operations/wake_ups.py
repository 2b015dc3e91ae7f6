# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's wake-ups: when what earlier ones touched is brought back ahead of page faults, and until when.

The engine says when page faults look like a wake-up, and does the replay. Nothing runs here while the guest
is idle. While it wakes up, its page faults are looked at some times a second: few of them mean that it has
settled.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
from collections.abc import Callable

from vmmswap import message_ids
from vmmswap.config import Config
from vmmswap.config_values import is_nothing
from vmmswap.engine import ReplayDone, Waking
from vmmswap.errors import BusyError, NoSuchVMError
from vmmswap.log import fields
from vmmswap.monitor.guard import guarded, log_failure
from vmmswap.monitor.operations.headroom import RoomWatch
from vmmswap.monitor.vm import Vm

_log = logging.getLogger("vmmswap.wake")

_LOOK_S = 0.25
_SETTLED_LOOKS = 4
_SETTLED_FAULTS = 50  # in all these looks together


class WakeUps:
    """Of one VM, until close(). pids: whose cgroups pay for pages that come back."""

    def __init__(self, vm: Vm, config: Callable[[], Config], pids: Callable[[], list[int]]) -> None:
        self._vm = vm
        self._config = config
        self._room = RoomWatch(pids, self._wanted_pages, vm.engine.set_wake_budget, self._memory_is_short)
        self._timer: asyncio.TimerHandle | None = None
        self._is_replaying = False
        self._is_ordered = False
        self._again = False  # start a replay when the one that is just ending has ended
        self._faults: collections.deque[int] = collections.deque(maxlen=_SETTLED_LOOKS + 1)
        self._before = 0  # PrefetchedPages

    def close(self) -> None:
        """The VM is gone, or a successor serves it."""
        self._room.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def take(self, event: Waking | ReplayDone) -> None:
        """Handle an event of the engine."""
        if isinstance(event, ReplayDone):
            self._replay_done(event)
            return
        if self._config().wake_prefetch == "yes":
            self._replay(is_ordered=False)
        elif self._brings_neighbours:
            self._grant()
        self._watch()

    def ordered(self) -> None:
        """Somebody knows that the guest wakes up."""
        self._replay(is_ordered=True)
        self._watch()

    def resume(self) -> None:
        """Resume what a predecessor was about when it ended."""
        was_replaying = self._vm.engine.was_replaying
        if was_replaying:
            self._replay(is_ordered=self._vm.engine.wake_is_ordered)
        if was_replaying or self._vm.engine.stats().waking:
            self._watch()

    # Inside

    @property
    def _brings_neighbours(self) -> bool:
        return not is_nothing(self._config().fault_around)

    def _grant(self) -> bool:
        """Let pages come back for as long as there is memory for them. False: there is too little."""
        self._room.stop()
        if not self._room.has_room():
            self._say_short()
            return False
        if not self._wanted_pages():  # nothing was granted, and a replay must not wait to find nothing
            self._vm.engine.set_wake_budget(self._vm.engine.stats().wake_set_pages)
        self._room.start()
        return True

    def _replay_done(self, event: ReplayDone) -> None:
        if not self._brings_neighbours or self._timer is None:  # else until the guest has settled
            self._room.stop()
        self._is_replaying = False
        if event.error is not None:
            _log.warning("what the guest needs is not brought back ahead of it any more: %s", event.error)
        again, self._again = self._again, False
        if again:
            self._replay(is_ordered=self._is_ordered)

    def _wanted_pages(self) -> int:
        stats = self._vm.engine.stats()
        return stats.swap_pages if self._brings_neighbours else min(stats.swap_pages, stats.wake_set_pages)

    def _replay(self, *, is_ordered: bool) -> None:
        if not self._grant():
            return
        if self._timer is None:
            self._before = self._vm.engine.stats().prefetched_pages
        self._is_ordered = is_ordered or (self._is_replaying and self._is_ordered)
        try:
            self._vm.engine.wake(is_ordered=is_ordered)
        except BusyError:  # the last one is just ending, or an operation has begun
            self._again = self._is_replaying
            return
        self._is_replaying = True

    def _memory_is_short(self) -> None:
        self._vm.engine.cancel_wake()
        self._say_short()

    def _say_short(self) -> None:
        _log.warning(
            "what the guest needs is not brought back ahead of it: %s; its page faults are served",
            self._room.limit,
            extra=fields("", message_ids.LOW_MEMORY),
        )

    def _watch(self) -> None:
        """Until the guest has settled."""
        if self._timer is None:
            self._faults.clear()
            self._look_later()

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        try:
            if self._has_settled():
                self._settle()
                return
        except NoSuchVMError:
            return
        except Exception as error:
            log_failure("cannot look whether the guest has woken up; trying again", error)
        self._look_later()

    def _has_settled(self) -> bool:
        stats = self._vm.engine.stats()
        if not stats.waking and not self._is_replaying:  # Enable, or Disable
            return True
        self._faults.append(stats.fault_count)
        if len(self._faults) <= _SETTLED_LOOKS:
            return False
        faults = self._faults[-1] - self._faults[0]
        if self._is_replaying and not self._is_ordered and not faults:  # the guest is idle again
            self._vm.engine.cancel_wake()
        return faults < _SETTLED_FAULTS and not self._is_replaying

    def _settle(self) -> None:
        engine = self._vm.engine
        self._room.stop()
        engine.set_wake_budget(0)
        with guarded("a wake-up is not in the log"), contextlib.suppress(NoSuchVMError):
            if not engine.settle_wake():
                return
            stats = engine.stats()
            ahead = stats.prefetched_pages - self._before
            _log.info(
                "the guest has woken up: it took %d ms from its first page fault, %d page faults, and %d"
                " pages were brought back ahead of them (%d are known from earlier wake-ups)",
                *(stats.wake_ms, stats.touched_pages, ahead, stats.wake_set_pages),
                extra=fields(
                    "",
                    message_ids.WOKE_UP,
                    vmmswap_wake_ms=stats.wake_ms,
                    vmmswap_touched_pages=stats.touched_pages,
                    vmmswap_prefetched_pages=ahead,
                    vmmswap_wasted_pages=stats.wasted_pages,
                    vmmswap_wake_set_pages=stats.wake_set_pages,
                ),
            )
