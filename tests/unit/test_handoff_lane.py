# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap/handoff/lane.py: no result of its work is lost, whenever the waiter is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from vmmswap.handoff.lane import Lane


async def test_a_result_that_comes_just_before_a_cancellation_is_discarded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, lane, discarded = asyncio.get_running_loop(), Lane(), list[str]()
    call_soon = loop.call_soon_threadsafe
    task = loop.create_task(lane.run(lambda: "fds", discarded.append))

    def and_cancel(callback, *args):
        def both() -> None:
            callback(*args)
            task.cancel()  # the result is set, and the task has not run on since

        return call_soon(both)

    monkeypatch.setattr(loop, "call_soon_threadsafe", and_cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    await lane.drained()
    assert discarded == ["fds"]


async def test_a_result_that_comes_after_a_cancellation_is_discarded() -> None:
    lane, discarded, may_end = Lane(), list[str](), asyncio.Event()
    loop = asyncio.get_running_loop()

    def work() -> str:
        asyncio.run_coroutine_threadsafe(may_end.wait(), loop).result()
        return "fds"

    task = loop.create_task(lane.run(work, discarded.append))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_end.set()
    await lane.drained()
    await lane.drained()
    assert discarded == ["fds"]
