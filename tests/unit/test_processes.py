# SPDX-License-Identifier: GPL-2.0-or-later
"""What the watch of a VM's processes does at its start."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from vmmswap.monitor.mappers import processes
from vmmswap.monitor.mappers.processes import Processes
from vmmswap.monitor.together import Together

MAX_AGE_S = 12.5


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
        engine = SimpleNamespace(stats=lambda: SimpleNamespace(tracking=True))
        pulse = SimpleNamespace(together=Together(), max_age_s=MAX_AGE_S, beat=never)
        vm = SimpleNamespace(engine=engine, processes={}, vmm=None, pulse=pulse)
        watch = Processes(vm, lambda: None, lambda _: None, lambda _: None)  # type: ignore[arg-type]
        assert watch._check is not None
        await asyncio.wait_for(watch._check, 60)
        watch.close()

    monkeypatch.setattr(processes, "Holders", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(processes, "HostLooks", Looks)
    monkeypatch.setattr(processes.coverage, "question_of", lambda _vm: None)
    monkeypatch.setattr(processes.coverage, "look", None)
    asyncio.run(run())
    assert ages == [MAX_AGE_S]
