# SPDX-License-Identifier: GPL-2.0-or-later
"""Who opens guest memory while it is out is looked for, whatever goes wrong with a look."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from vmmswap.engine import Holder
from vmmswap.errors import VmmswapError
from vmmswap.monitor.holders import Holders
from vmmswap.monitor.host_looks import HostLooks
from vmmswap.monitor.mappers import coverage
from vmmswap.monitor.together import Together

DEADLINE_S = 60.0
SELF = Holder(1, 5, 0)
LATE = Holder(2, 6, 0)


class Looks:
    """What each look finds; the last one goes for all later ones. An exception is raised."""

    def __init__(self, *found: list[Holder] | Exception) -> None:
        self._found = list(found)

    def __call__(self, *_: object) -> list[Holder]:
        found = self._found.pop(0) if len(self._found) > 1 else self._found[0]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def vm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """With memory out."""
    nobody = SimpleNamespace(mapped=(), private=())
    monkeypatch.setattr(coverage, "question_of", lambda _vm: None)
    monkeypatch.setattr(coverage, "look_at", lambda _question, _pids: nobody)
    engine = SimpleNamespace(stats=lambda: SimpleNamespace(tracking=True))
    pulse = SimpleNamespace(
        rest=lambda _took_s: asyncio.sleep(0),
        stir=lambda: None,
        forget=lambda: None,
        together=Together(),
        max_age_s=0.5,
    )
    return SimpleNamespace(memfds={0: 3}, engine=engine, pulse=pulse, store=SimpleNamespace(manager=0))


def first_late(vm: Any, *, accepts: bool) -> str:
    async def run() -> str:
        late: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def on_late(error: VmmswapError) -> None:
            if not late.done():
                late.set_result(error.message)

        watched = Holders(vm, on_late)
        if accepts:
            await watched.accept()
        async with asyncio.timeout(DEADLINE_S):
            found = await late
        watched.close()
        return found

    return asyncio.run(run())


@pytest.mark.parametrize("failure", [OSError("no fd left"), RuntimeError("a bug")])
def test_a_look_that_fails_is_not_the_last(
    vm: Any,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
) -> None:
    monkeypatch.setattr(coverage, "other_holders", Looks([SELF], failure, [SELF, LATE]))
    assert "process 2" in first_late(vm, accepts=True)


def test_a_successor_takes_those_that_are_there_for_accepted(
    vm: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coverage, "other_holders", Looks([SELF], [SELF], [SELF], [SELF, LATE]))
    assert "process 2" in first_late(vm, accepts=False)


def test_one_that_is_seen_once_has_passed(
    vm: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Holder(4, 7, 0)
    monkeypatch.setattr(coverage, "other_holders", Looks([], [LATE], [], [LATE], [other]))
    assert "process 4" in first_late(vm, accepts=True)


def test_one_that_was_accepted_and_comes_again_is_late(
    vm: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coverage, "other_holders", Looks([SELF], [], [SELF]))
    assert "process 1" in first_late(vm, accepts=True)


def test_a_look_from_before_enable_does_not_count(vm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may miss a process that Enable has accepted, which would be late at the next one."""
    ages: list[float] = []

    def holders(_looks: HostLooks, *_: object, max_age_s: float) -> list[Holder]:
        ages.append(max_age_s)
        return [SELF]

    monkeypatch.setattr(coverage, "other_holders", Looks([SELF]))
    monkeypatch.setattr(HostLooks, "holders", holders)
    vm.pulse.max_age_s = 3600.0

    async def run() -> None:
        watched = Holders(vm, lambda _error: None)
        async with asyncio.timeout(DEADLINE_S):
            await watched.accept()
            while len(ages) < 3:
                await asyncio.sleep(0)
        watched.close()

    asyncio.run(run())
    assert ages[-1] < 3600.0


def test_a_look_that_was_under_way_at_enable_drops_nobody(vm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    began, accepted = threading.Event(), threading.Event()
    seen: list[list[Holder]] = []

    def holders(*_: object, max_age_s: float) -> list[Holder]:
        assert max_age_s >= 0
        seen.append([SELF, LATE] if began.is_set() else [SELF])
        if len(seen) == 1:
            began.set()
            accepted.wait(DEADLINE_S)
        return seen[-1]

    monkeypatch.setattr(coverage, "other_holders", Looks([SELF, LATE]))
    monkeypatch.setattr(HostLooks, "holders", holders)
    vm.pulse.together = SimpleNamespace(ask=asyncio.to_thread)
    late: list[str] = []

    async def run() -> None:
        watched = Holders(vm, lambda error: late.append(error.message))
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.to_thread(began.wait, DEADLINE_S)
            await watched.accept()
            accepted.set()
            while len(seen) < 5:
                await asyncio.sleep(0)
        watched.close()

    asyncio.run(run())
    assert not late


def test_a_successor_takes_a_look_of_others(vm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ages: list[float] = []
    found = [[SELF], [SELF], [SELF, LATE]]

    def holders(_looks: HostLooks, *_: object, max_age_s: float) -> list[Holder]:
        ages.append(max_age_s)
        return found[min(len(ages), len(found)) - 1]

    monkeypatch.setattr(HostLooks, "holders", holders)
    vm.pulse.max_age_s = 20.0
    assert "process 2" in first_late(vm, accepts=False)
    assert ages[0] == 20.0
