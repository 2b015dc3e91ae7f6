# SPDX-License-Identifier: GPL-2.0-or-later
"""What the watches of a VM ask at one beat runs on one thread, and what waits holds up nothing else."""

import asyncio
import threading

import pytest

from vmmswap.monitor.together import Together, Waits

LIMIT_S = 60


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, LIMIT_S))


def where():
    return threading.get_ident()


def test_what_is_asked_at_once_runs_on_one_thread():
    async def ask():
        together = Together()
        return await asyncio.gather(*(together.ask(where) for _ in range(5)))

    threads = run(ask())
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


def test_each_has_its_own_result_or_error():
    def fail():
        raise ValueError("bad")

    async def ask():
        together = Together()
        asked = (together.ask(len, "abc"), together.ask(fail), together.ask(max, 1, 2))
        return await asyncio.gather(*asked, return_exceptions=True)

    three, error, two = run(ask())
    assert (three, two) == (3, 2)
    assert isinstance(error, ValueError)


def test_what_may_wait_comes_last():
    order = []

    async def ask():
        together = Together()
        await asyncio.gather(
            together.ask(order.append, "for anybody", waits=Waits.FOR_ANYBODY),
            together.ask(order.append, "for the VM", waits=Waits.FOR_THE_VM),
            together.ask(order.append, "for nothing"),
        )

    run(ask())
    assert order == ["for nothing", "for the VM", "for anybody"]


def test_a_stranger_holds_up_nothing_that_waits_for_the_vm():
    """It is asked later at the same beat, and ends though the stranger never answers."""
    released = threading.Event()

    async def ask():
        together = Together()
        stranger = together.ask(released.wait, LIMIT_S, waits=Waits.FOR_ANYBODY)
        own = together.ask(len, "abc", waits=Waits.FOR_THE_VM)
        try:
            assert await own == 3
            assert not stranger.done()
        finally:
            released.set()
        assert await stranger

    run(ask())


def test_what_waits_holds_up_nothing_else():
    """Neither what was asked with it, nor what is asked later."""
    released = threading.Event()

    async def ask():
        together = Together()
        waiting = together.ask(released.wait, LIMIT_S, waits=Waits.FOR_ANYBODY)
        try:
            assert await together.ask(len, "abc") == 3
            assert await together.ask(len, "abcd") == 4
            assert not waiting.done()
        finally:
            released.set()
        assert await waiting

    run(ask())


def test_who_gives_up_harms_nobody():
    released = threading.Event()

    async def ask():
        together = Together()
        waiting = together.ask(released.wait, LIMIT_S)
        other = together.ask(len, "abc")
        waiting.cancel()
        released.set()
        assert await other == 3
        assert waiting.cancelled()

    run(ask())


def test_without_a_thread_each_is_told(monkeypatch):
    async def ask():
        def refuse(*_arguments):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", refuse)
        together = Together()
        with pytest.raises(RuntimeError, match="thread"):
            await together.ask(len, "abc")

    run(ask())
