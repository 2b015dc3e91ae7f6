# SPDX-License-Identifier: GPL-2.0-or-later
"""When a replay begins and ends, over a fake engine: tests/support/ordered_vm.py explains the transcripts."""

import asyncio

import pytest

from tests.support.ordered_vm import OrderedVm
from vmmswap.config import Config
from vmmswap.engine import Job, JobDone, ReplayDone, Waking
from vmmswap.errors import BusyError, NoSpaceError
from vmmswap.monitor.operations import wake_ups

OUT = 1000
DEADLINE_S = 60.0
SHORT = "what the guest needs is not brought back ahead of it: a limit; its page faults are served"


@pytest.fixture
async def vm(monkeypatch, tmp_path):
    monkeypatch.setattr(wake_ups, "_LOOK_S", 0.001)
    made = OrderedVm(monkeypatch, tmp_path, out_pages=OUT)
    made.engine.set_stats(wake_set_pages=500)
    yield made
    made.end()


async def until(condition):
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def test_by_page_faults_until_the_guest_has_settled(vm):
    vm.tells(Waking(), waking=1)
    assert vm.said() == ["engine wake"]
    vm.tells(ReplayDone(None, cancelled=False), prefetched_pages=450, wake_ms=120, touched_pages=33)
    await until(lambda: "engine settle" in vm.transcript)
    assert vm.said() == [
        "engine settle",
        "journal the guest has woken up: it took 120 ms from its first page fault, 33 page faults, and 450"
        " pages were brought back ahead of them (500 are known from earlier wake-ups)",
    ]


async def test_by_an_order(vm):
    await vm.controller.wake()
    assert vm.said() == ["engine wake by an order"]


async def test_while_nothing_is_out(monkeypatch, tmp_path):
    vm = OrderedVm(monkeypatch, tmp_path)
    await vm.controller.wake()
    assert vm.said() == []
    vm.end()


async def test_not_during_a_swap_out(vm):
    await vm.controller.enable()
    vm.said()
    with pytest.raises(BusyError, match="a swap-out is under way: wake when it is done"):
        await vm.controller.wake()
    await vm.controller.disable()
    vm.tells(JobDone(Job.SWAP_OUT, None, cancelled=True))
    vm.said()
    await vm.controller.wake()  # a swap-in: all is coming back
    assert vm.said() == []


async def test_not_by_itself_where_that_is_not_wanted(vm):
    vm.around.settings.current = Config(wake_prefetch="no")
    vm.tells(Waking(), waking=1)
    assert vm.said() == []
    await until(lambda: "engine settle" in vm.transcript)  # it is noted all the same


async def test_neighbours_come_while_there_is_memory_until_the_guest_has_settled(vm):
    vm.around.settings.current = Config(wake_prefetch="no", fault_around="64K")
    vm.tells(Waking(), waking=1)
    assert vm.engine.wake_budget > 0
    await until(lambda: "engine settle" in vm.transcript)
    assert vm.engine.wake_budget == 0
    vm.room_bytes = 0
    vm.tells(Waking(), waking=1)
    assert vm.engine.wake_budget == 0


async def test_no_neighbours_where_they_are_not_wanted(vm):
    vm.around.settings.current = Config(wake_prefetch="no", fault_around="0")
    vm.tells(Waking(), waking=1)
    assert vm.engine.wake_budget is None


async def test_a_replay_of_nothing_does_not_wait_for_memory(vm):
    """All has come back by page faults; what is known is granted all the same."""
    vm.engine.set_stats(swap_pages=0)
    await vm.controller.wake()
    assert vm.engine.wake_budget == 500


async def test_no_memory(vm):
    vm.room_bytes = 0
    vm.tells(Waking(), waking=1)
    assert vm.said() == [f"journal {SHORT}"]


async def test_memory_runs_short(vm, monkeypatch):
    monkeypatch.setattr(wake_ups, "_LOOK_S", 1000)  # else the guest counts as idle
    vm.tells(Waking(), waking=1)
    vm.room_bytes = 0
    await until(lambda: "engine cancel the replay" in vm.transcript)
    vm.tells(ReplayDone(None, cancelled=True))
    assert vm.said() == ["engine wake", "engine cancel the replay", f"journal {SHORT}"]
    vm.tells(Waking())
    vm.room_bytes = 1 << 40
    vm.tells(ReplayDone(NoSpaceError("no memory left"), cancelled=False))
    assert vm.said()[-1] == (
        "journal what the guest needs is not brought back ahead of it any more: no memory left"
    )


async def test_a_replay_ends_when_the_guest_is_idle_again(vm):
    vm.tells(Waking(), waking=1)
    await until(lambda: "engine cancel the replay" in vm.transcript)


async def test_an_ordered_replay_does_not_wait_for_the_guest(vm):
    await vm.controller.wake()
    await has_looked_often()
    assert vm.said() == ["engine wake by an order"]


async def has_looked_often():
    looks = 0

    def has_looked():
        nonlocal looks
        looks += 1
        return looks > 100

    await until(has_looked)


async def test_an_order_that_comes_while_a_replay_is_ending_is_still_one_when_that_has_ended(vm, monkeypatch):
    def wake(**_how):
        raise BusyError("a replay is just ending")

    vm.tells(Waking(), waking=1)
    with monkeypatch.context() as patch:
        patch.setattr(vm.engine, "wake", wake)
        await vm.controller.wake()
    vm.said()
    vm.tells(ReplayDone(None, cancelled=True))
    assert vm.said() == ["engine wake by an order"]
    await has_looked_often()
    assert vm.said() == []


async def test_page_faults_do_not_make_an_ordered_replay_one_that_ends_when_they_stop(vm):
    await vm.controller.wake()
    vm.tells(Waking(), waking=1)
    vm.said()
    await has_looked_often()
    assert vm.said() == []


async def test_a_successor_does_the_replay_again(vm):
    vm.engine.was_replaying = True
    vm.orders.resume(Job.NONE)
    assert vm.said() == ["engine wake"]


async def test_a_replay_that_was_ordered_is_so_for_a_successor(vm):
    """Else the guest's first quiet second would end it."""
    vm.engine.was_replaying = vm.engine.wake_is_ordered = True
    vm.orders.resume(Job.NONE)
    assert vm.said() == ["engine wake by an order"]
