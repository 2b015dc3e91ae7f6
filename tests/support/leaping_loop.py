# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a monitor on an event loop whose clock leaps: python -m tests.support.leaping_loop FILE ARGUMENTS...

While FILE holds a number of seconds, and nothing else is to be done, each timer is due at once: the clock
goes to it instead of waiting. When so many seconds have passed the file becomes a JSON object: how many
timers were due in that time (`timers`), what they belonged to (`by`), how often a thread was given something
to do (`jobs`), and how often all watches were woken up (`looks`).
"""

from __future__ import annotations

import asyncio
import collections
import json
import selectors
import sys
from pathlib import Path
from typing import Any

from vmmswap.monitor import main
from vmmswap.monitor.pulse import Pulse

_WORK_S = 0.02  # for threads and peers to have an answer


class LeapingLoop(asyncio.SelectorEventLoop):
    """One, for this process."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ahead_s = 0.0
        self._until_s = 0.0
        self._by: collections.Counter[str] = collections.Counter()
        self._jobs = self._looks = 0
        super().__init__(_Selector(self))
        look_at_all = Pulse._look_at_all

        def count(pulse: Pulse, glanced: object) -> None:
            self._looks += 1
            look_at_all(pulse, glanced)

        Pulse._look_at_all = count  # type: ignore[method-assign]

    def time(self) -> float:
        return super().time() + self._ahead_s

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        self._jobs += 1
        return super().run_in_executor(executor, func, *args)

    def leap(self, pause_s: float) -> bool:
        """Instead of a pause. False if it must be waited for."""
        if not self._until_s:
            if not self._file.exists() or not (text := self._file.read_text()).isdigit():
                return False
            self._until_s = self.time() + float(text)
            self._jobs = self._looks = 0
        self._ahead_s += pause_s
        self._by[_name(self._scheduled[0])] += 1  # type: ignore[attr-defined]  # its own, of BaseEventLoop
        if self.time() >= self._until_s:
            self._until_s = 0
            done = self._file.with_suffix(".done")
            found = {"timers": self._by.total(), "by": self._by, "jobs": self._jobs, "looks": self._looks}
            done.write_text(json.dumps(found))
            done.rename(self._file)
            self._by.clear()
        return True


class _Selector(selectors.EpollSelector):
    def __init__(self, loop: LeapingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= _WORK_S:
            return super().select(timeout)
        while timeout > _WORK_S:
            if found := super().select(_WORK_S):
                return found
            timeout -= _WORK_S
            if not _is_working() and self._loop.leap(timeout):
                return []
        return super().select(timeout)


def _is_working() -> bool:
    """True if a thread of the default executor has something to do."""
    executor: Any = asyncio.get_running_loop()._default_executor  # type: ignore[attr-defined]
    return executor is not None and executor._idle_semaphore._value < len(executor._threads)


def _name(handle: asyncio.TimerHandle) -> str:
    return getattr(handle._callback, "__qualname__", repr(handle._callback))


if __name__ == "__main__":
    made = LeapingLoop(Path(sys.argv.pop(1)))
    asyncio.new_event_loop = lambda: made
    main.main()
