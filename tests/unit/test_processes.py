# SPDX-License-Identifier: GPL-2.0-or-later
"""What the watch of a VM's processes does at its start, and what it looks at from then on."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from vmmswap.errors import NotSupportedError
from vmmswap.monitor import pulse
from vmmswap.monitor.mappers import liveness, processes
from vmmswap.monitor.mappers.processes import Processes
from vmmswap.monitor.pulse import Pulse
from vmmswap.monitor.together import Together

MAX_AGE_S = 12.5
PICTURE = SimpleNamespace(mapped=())


def test_a_successor_does_not_look_through_all_processes_if_another_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where all monitors of a host start anew, each doing so would cost the square of their number."""
    ages: list[float] = []

    class Looks:
        def mapped(self, _question: Any, max_age_s: float) -> SimpleNamespace:
            ages.append(max_age_s)
            return SimpleNamespace(mapped=())

    async def never() -> None:
        await asyncio.Event().wait()

    async def run() -> None:
        engine = SimpleNamespace(stats=lambda: SimpleNamespace(tracking=True), is_tracking=True)
        pulse = SimpleNamespace(together=Together(), max_age_s=MAX_AGE_S, change=never)
        pidfd = os.pidfd_open(os.getpid())
        vmm = SimpleNamespace(process_id=1, pid=os.getpid(), pidfd=pidfd, uffd=-1)
        vm = SimpleNamespace(engine=engine, processes={1: vmm}, vmm=vmm, pulse=pulse)
        watch = Processes(vm, lambda: None, lambda _: None, lambda _: None)  # type: ignore[arg-type]
        assert watch._check is not None
        await asyncio.wait_for(watch._check, 60)
        watch.close()
        os.close(pidfd)

    monkeypatch.setattr(processes, "Holders", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(processes, "HostLooks", Looks)
    monkeypatch.setattr(processes.coverage, "question_of", lambda _vm: None)
    monkeypatch.setattr(processes.coverage, "look", None)
    asyncio.run(run())
    assert ages == [MAX_AGE_S]


class AtOnce:
    """Instead of a thread, which may have no answer before the next beat."""

    def ask(self, function: Callable[..., Any], *arguments: Any, **_waits: Any) -> asyncio.Future[Any]:
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(function(*arguments))
        return answer


class Glances:
    """What Pulse asks for at quiet beats. Nothing ever changes."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Callable[[], object]:
        self.count += 1
        return lambda: "as before"

    async def more(self, beats: Pulse) -> None:
        until = self.count + 5
        while self.count < until:
            await beats.beat()


def quiet_pulse(*, is_tracking: bool) -> tuple[Pulse, Glances]:
    engine = SimpleNamespace(
        stats=lambda: SimpleNamespace(tracking=is_tracking), is_tracking=is_tracking, activity=lambda: (0,)
    )
    beats, glances = Pulse(engine), Glances()  # type: ignore[arg-type]
    beats.glance, beats.together = glances, AtOnce()  # type: ignore[assignment]
    return beats, glances


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "FIRST_S", 0.001)
    monkeypatch.setattr(pulse, "LONGEST_S", 0.001)
    monkeypatch.setattr(processes, "_ALIVE_EVERY_S", 0.001)
    monkeypatch.setattr(processes, "Holders", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(processes, "HostLooks", lambda: SimpleNamespace(mapped=lambda *_, **__: PICTURE))
    monkeypatch.setattr(processes.coverage, "question_of", lambda _vm: None)
    monkeypatch.setattr(liveness, "is_gone", lambda _uffd: False)


@pytest.mark.usefixtures("fast")
def test_a_setting_that_protects_memory_is_looked_at_even_if_that_was_found_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check of a large VM takes longer than a successor's first beats; nothing changes after them."""
    is_known = threading.Event()

    def check(_processes: Any) -> bool:
        assert is_known.wait(60)
        return True

    async def run() -> None:
        is_looked_at = asyncio.Event()
        monkeypatch.setattr(processes.collapse, "is_denied", lambda: is_looked_at.set() or True)
        beats, glances = quiet_pulse(is_tracking=True)
        pidfd = os.pidfd_open(os.getpid())
        vmm = SimpleNamespace(process_id=1, pid=os.getpid(), pidfd=pidfd, uffd=-1)
        vm = SimpleNamespace(engine=beats._engine, processes={1: vmm}, vmm=vmm, pulse=beats)
        watch = Processes(vm, lambda: None, lambda _: None, lambda _: None)  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(60):
                await glances.more(beats)
                is_known.set()
                await is_looked_at.wait()
        finally:
            is_known.set()
            watch.close()
            os.close(pidfd)

    monkeypatch.setattr(processes.collapse, "check", check)
    asyncio.run(run())


@pytest.mark.usefixtures("fast")
def test_the_check_of_what_is_out_is_made_again_until_it_has_an_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as by a successor that is short of fds: nobody else knows what protects the memory."""
    fails = iter([OSError(errno.EMFILE, "no fd"), OSError(errno.EMFILE, "no fd"), MemoryError()])
    exposed: list[Exception] = []

    def check(_processes: Any) -> bool:
        if (error := next(fails, None)) is not None:
            raise error
        raise NotSupportedError("huge pages may come")

    async def run() -> None:
        beats, _glances = quiet_pulse(is_tracking=True)
        pidfd = os.pidfd_open(os.getpid())
        vmm = SimpleNamespace(process_id=1, pid=os.getpid(), pidfd=pidfd, uffd=-1)
        vm = SimpleNamespace(engine=beats._engine, processes={1: vmm}, vmm=vmm, pulse=beats)
        watch = Processes(vm, lambda: None, exposed.append, lambda _: None)  # type: ignore[arg-type]
        try:
            assert watch._check is not None
            await asyncio.wait_for(watch._check, 60)
        finally:
            watch.close()
            os.close(pidfd)

    monkeypatch.setattr(processes.collapse, "check", check)
    asyncio.run(run())
    assert [str(error) for error in exposed] == ["huge pages may come"]
    assert len(caplog.records) == 2  # each kind of failure once


@pytest.mark.usefixtures("fast")
def test_an_end_that_cannot_be_recorded_is_recorded_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """No glance shows a process that is known to have gone."""
    has_ended, fails = False, iter(range(10))

    async def run() -> None:
        nonlocal has_ended
        beats, glances = quiet_pulse(is_tracking=False)
        vmm, child = (SimpleNamespace(process_id=key, pid=0, pidfd=-1, ranges=(), uffd=key) for key in (1, 2))
        vm = SimpleNamespace(engine=beats._engine, processes={1: vmm, 2: child}, vmm=vmm, pulse=beats)

        def remove(process_id: int) -> None:
            if next(fails, None) is not None:
                raise MemoryError
            del vm.processes[process_id]

        vm.remove_process = remove
        watch = Processes(vm, lambda: None, lambda _: None, lambda _: None)  # type: ignore[arg-type]
        async with asyncio.timeout(60):
            await glances.more(beats)
            has_ended = True
            beats.forget()  # a glance sees the end
            while 2 in vm.processes:
                await beats.beat()
        watch.close()

    monkeypatch.setattr(Processes, "_start_search", lambda _: None)
    monkeypatch.setattr(liveness, "is_gone", lambda uffd: has_ended and uffd == 2)
    asyncio.run(run())
