# SPDX-License-Identifier: GPL-2.0-or-later
"""What can wait for a process, or looks at all of them, is not called on the event loop."""

import ast
import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from vmmswap.errors import NoSuchVMError
from vmmswap.monitor.mappers import liveness, processes
from vmmswap.monitor.mappers.liveness import Liveness
from vmmswap.monitor.mappers.processes import Processes
from vmmswap.monitor.new_vm import NewProcess
from vmmswap.monitor.process import Process
from vmmswap.monitor.together import Together

NO_TRACKING = SimpleNamespace(tracking=False)
MONITOR = Path(liveness.__file__).parents[1]
MAY_WAIT = {
    "is_gone",
    "coverage.look",
    "coverage.look_at",
    "coverage.find_unregistered",
    "coverage.other_holders",
    "coverage.check_not_locked",
    "coverage.check_buffers",
    "collapse.check",
    "holders_of",
    "mappings_of",
    "self._looks.holders",
    "self._looks.mapped",
}
ON_A_THREAD = {  # functions that are passed to one, or that those call, or that run before there is a loop
    ("glance.py", "_glance"),
    ("mappers/liveness.py", "_ask"),
    ("mappers/succession.py", "_look"),
    ("mappers/coverage.py", "look"),
    ("mappers/coverage.py", "look_at"),
    ("mappers/coverage.py", "other_holders"),
    ("host_looks.py", "mapped"),
    ("host_looks.py", "holders"),
    ("recovery.py", "_mapped_now"),
}


def calls_in(path: Path) -> Iterator[tuple[str, str, int]]:
    """(function, what it calls that may wait, line)"""
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and (called := ast.unparse(node.func)) in MAY_WAIT:
                    yield function.name, called, node.lineno


def test_what_may_wait_is_called_on_threads_only() -> None:
    found = []
    for path in sorted(MONITOR.rglob("*.py")):
        file = str(path.relative_to(MONITOR))
        for function, called, line in calls_in(path):
            if (file, function) not in ON_A_THREAD:
                found.append(f"{file}:{line}: {function}() calls {called}()")
    assert not found


@pytest.fixture
def holding(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Process 1 holds its lock until the event is set; 2 has gone."""
    free = threading.Event()
    waiting: list[int] = []

    def ask(uffd: int) -> bool:
        if uffd == 1:
            waiting.append(uffd)
            assert len(waiting) == 1, "a second thread waits"
            free.wait()
            waiting.clear()
        return uffd == 2

    monkeypatch.setattr(liveness, "is_gone", ask)
    monkeypatch.setattr(liveness, "LIMIT_S", 0.1)
    yield free
    free.set()


def process(number: int) -> Process:
    return Process(number, number, 0, -1, number, False, ())


def test_a_process_that_does_not_answer_is_there(holding: threading.Event) -> None:
    async def ask() -> None:
        asked = Liveness(Together())
        assert await asked.gone([process(2), process(1)]) == {2}
        assert await asked.gone([process(1)]) == frozenset()
        together = await asyncio.gather(*(asked.gone([process(2)]) for _ in range(3)))
        assert together == [frozenset()] * 3  # not known now
        holding.set()
        while not await asked.gone([process(2)]):
            await asyncio.sleep(0)

    asyncio.run(ask())


def test_what_is_left_of_a_refused_process_is_released_on_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the one that comes again: add_process() finds nothing left, and so does not wait."""
    calls: list[tuple[str, bool]] = []

    def say(name: str) -> None:
        calls.append((name, threading.current_thread() is threading.main_thread()))

    def add_process(_new: object) -> None:
        say("add_process")
        raise NoSuchVMError("the test ends here")

    async def run() -> None:
        engine = SimpleNamespace(release_rest=lambda: say("release_rest"), stats=lambda: NO_TRACKING)
        pulse = SimpleNamespace(together=Together())
        vm = SimpleNamespace(engine=engine, processes={}, vmm=None, pulse=pulse, add_process=add_process)
        watch = Processes(vm, lambda: None, lambda _: None, lambda _: None)  # type: ignore[arg-type]
        try:
            await watch.add(NewProcess(0, -1, -1, ()))
        finally:
            watch.close()

    monkeypatch.setattr(processes, "Holders", lambda *_: SimpleNamespace(close=lambda: None))
    with pytest.raises(NoSuchVMError, match="the test ends here"):
        asyncio.run(run())
    assert calls == [("release_rest", False), ("add_process", True)]
