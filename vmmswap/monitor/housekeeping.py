# SPDX-License-Identifier: GPL-2.0-or-later
"""Gives the disk space of pages that came back, one by one, to the file system again.

A swap-in and a trim do that at their ends. A guest that wakes by its faults alone never gets to such an end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from vmmswap.monitor.guard import guarded

_IDLE_S = 1.0
_MORE_S = 0.05
_STEPS_NS = 5_000_000  # the event loop has other things to do


class Housekeeping:
    """Calls step() now and then, and more often for as long as it returns True."""

    def __init__(self, step: Callable[[], bool]) -> None:
        self._step = step
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self.stop()
        self._schedule(_IDLE_S)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, delay_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._work)

    def _work(self) -> None:
        is_more = False
        end_ns = time.monotonic_ns() + _STEPS_NS
        with guarded("disk space of what is not needed is not given back now"):
            while is_more := self._step():
                if time.monotonic_ns() > end_ns:
                    break
        self._schedule(_MORE_S if is_more else _IDLE_S)
