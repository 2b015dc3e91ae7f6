# SPDX-License-Identifier: GPL-2.0-or-later
"""Who opens guest memory while it is out is looked for, whatever goes wrong with a look."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from vmmswap.engine import Holder
from vmmswap.errors import VmmswapError
from vmmswap.monitor.holders import Holders
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
        rest=lambda _took_s: asyncio.sleep(0), stir=lambda: None, together=Together(), max_age_s=0.5
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
