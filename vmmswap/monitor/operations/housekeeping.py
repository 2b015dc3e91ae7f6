# SPDX-License-Identifier: GPL-2.0-or-later
"""Gives the disk space of pages that came back, one by one, to the file system again.

A swap-in and a trim do that at their ends. A guest that wakes by its faults alone never gets to such an end.
It waits for the disk, and so is done on a thread. What the store's tiers need, the engine does by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from vmmswap.engine import Engine
from vmmswap.monitor.guard import guarded
from vmmswap.monitor.pulse import Pulse

_MORE_S = 0.05
_STEPS_NS = 5_000_000  # page faults may want the disk


class Housekeeping:
    """After something has happened, and more often for as long as there is something to do. idle_engine: None
    while a job runs.
    """

    def __init__(self, idle_engine: Callable[[], Engine | None], pulse: Pulse) -> None:
        self._idle_engine = idle_engine
        self._pulse = pulse
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.stop()
        self._task = asyncio.get_running_loop().create_task(self._work(), name="housekeeping")

    def stop(self) -> None:
        """A step that runs is not interrupted."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _work(self) -> None:
        is_more = False
        while True:
            if is_more:
                await asyncio.sleep(_MORE_S)
            else:
                await self._pulse.change()
                if self._pulse.is_quiet:
                    continue
            is_more = False
            engine = self._idle_engine()
            if engine is not None:
                with guarded("disk space that is not needed cannot be freed now"):
                    is_more = await asyncio.to_thread(_steps, engine)


def _steps(engine: Engine) -> bool:
    end_ns = time.monotonic_ns() + _STEPS_NS
    while is_more := engine.housekeep():
        if time.monotonic_ns() > end_ns:
            break
    return is_more
