# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs on one thread, one after the other, what the watches of a VM ask at the same beat (pulse.py).

A thread for each would wake up as many threads, which then wake up each other, as only one of them may run
Python code at a time; and each would wake up the event loop when it ends.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, TypeVar

from vmmswap.later import asyncio

_LATE_S = 0.5

_Result = TypeVar("_Result")


class Waits(enum.IntEnum):
    """For what a call may wait as long as that likes. It runs after all that wait for less."""

    FOR_NOTHING = 0
    FOR_THE_VM = 1  # the VM's own processes
    FOR_ANYBODY = 2  # any process of the host


class Together:
    """Of one VM. However long one batch takes, the next has a thread of its own."""

    def __init__(self) -> None:
        self._asked: list[_Call] = []

    def ask(
        self,
        function: Callable[..., _Result],
        *arguments: Any,  # noqa: ANN401  as of to_thread()
        waits: Waits = Waits.FOR_NOTHING,
    ) -> asyncio.Future[_Result]:
        """The future has what the function returns or raises."""
        loop = asyncio.get_running_loop()
        call = _Call(function, arguments, loop.create_future(), waits)
        if not self._asked:
            loop.call_soon(self._start)  # once all others have asked that the beat has woken up
        self._asked.append(call)
        return call.future

    def _start(self) -> None:
        calls, self._asked = sorted(self._asked, key=lambda call: call.waits), []
        batch = _Batch(calls)
        loop = asyncio.get_running_loop()
        try:
            loop.run_in_executor(None, batch.work).add_done_callback(batch.settle_last)
        except RuntimeError as error:  # no thread can be started
            for call in calls:
                call.fail(error)
        else:
            batch.settle_late(loop)


class _Call:
    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        future: asyncio.Future[Any],
        waits: Waits,
    ) -> None:
        self._function, self._arguments = function, arguments
        self._result: Any = None
        self._error: BaseException | None = None
        self.future = future
        self.waits = waits

    def work(self) -> None:
        try:
            self._result = self._function(*self._arguments)
        except BaseException as error:
            self._error = error

    def settle(self) -> None:
        if self.future.done():  # nobody waits any more
            return
        if self._error is None:
            self.future.set_result(self._result)
        else:
            self.future.set_exception(self._error)

    def fail(self, error: BaseException) -> None:
        self._error = error
        self.settle()


class _Batch:
    """Those that have ended are settled when all have, by one wake-up of the loop; if that is late, from then
    on again and again.
    """

    def __init__(self, calls: list[_Call]) -> None:
        self._calls = calls
        self._ended = 0  # so many; of the thread
        self._settled = 0  # of the loop
        self._timer: asyncio.TimerHandle | None = None

    def work(self) -> None:
        """On a thread."""
        for call in self._calls:
            call.work()
            self._ended += 1

    def settle_late(self, loop: asyncio.AbstractEventLoop) -> None:
        self._settle()
        if self._settled < len(self._calls):
            self._timer = loop.call_later(_LATE_S, self.settle_late, loop)

    def settle_last(self, _work: asyncio.Future[None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._settle()

    def _settle(self) -> None:
        ended = self._ended
        for call in self._calls[self._settled : ended]:
            call.settle()
        self._settled = ended
