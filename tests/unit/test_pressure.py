# SPDX-License-Identifier: GPL-2.0-or-later
"""When the host counts as short of memory, and who looks for how long."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from tests.support.ordered_vm import FakeEngine
from vmmswap.engine import Job, TierFds
from vmmswap.monitor.operations import pressure
from vmmswap.monitor.operations.headroom import Headroom
from vmmswap.monitor.operations.pressure import PressureWatch, why_short
from vmmswap.monitor.pulse import Pulse

ON_DISK = TierFds(3, 4, 5, 6)


def psi(path: Path, percent: float) -> Path:
    path.write_text(
        f"some avg10={percent:.2f} avg60=0.00 avg300=0.00 total=1\nfull avg10=99.00 avg60=0.00 avg300=0.00"
        " total=0\n"
    )
    return path


def room(monkeypatch: pytest.MonkeyPatch, room_bytes: int) -> None:
    monkeypatch.setattr(pressure, "look", lambda _pids, _mounts: Headroom(room_bytes, "a limit"))


def test_a_host_with_memory_left_that_nobody_waits_for_is_not_short(monkeypatch, tmp_path):
    room(monkeypatch, 1)
    assert why_short([], [], psi(tmp_path / "memory", 9.9)) == ""
    assert why_short([], [], tmp_path / "none") == ""


def test_a_limit_whose_reserve_is_touched_is_named(monkeypatch, tmp_path):
    room(monkeypatch, -1)
    assert why_short([], [], tmp_path / "none") == "a limit"


def test_tasks_that_wait_for_memory_are_reported(monkeypatch, tmp_path):
    room(monkeypatch, 1 << 40)
    path = psi(tmp_path / "memory", 10)
    assert str(path) in why_short([], [], path)


class Engine(FakeEngine):
    """Also counts how often it is asked."""

    def __init__(self, fds: TierFds) -> None:
        super().__init__(print)
        self.tier_fds = fds
        self.told: list[bool] = []
        self.looks = 0

    def stats(self):
        self.looks += 1
        return super().stats()

    def host_is_short(self, is_short: bool) -> None:
        self.told.append(is_short)


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(pressure, "_LOOK_S", 0.001)


def test_the_engine_is_told_once_when_memory_is_short_and_once_when_it_is_not(monkeypatch):
    async def run() -> None:
        engine = Engine(ON_DISK)
        engine.set_stats(stored_ram_bytes=1 << 20)
        room(monkeypatch, -1)
        watch = PressureWatch(engine, Pulse(engine), list)
        watch.look_on()
        await until(lambda: engine.looks > 3)
        assert engine.told == [True]
        room(monkeypatch, 1 << 40)
        monkeypatch.setattr(pressure, "why_short", lambda _pids, _mounts: "")
        await until(lambda: engine.told == [True, False])
        watch.stop()

    asyncio.run(run())


def test_nobody_looks_while_nothing_is_in_ram_and_no_job_runs(monkeypatch):
    async def run() -> None:
        engine = Engine(ON_DISK)
        room(monkeypatch, 1 << 40)
        engine.set_stats(job=Job.SWAP_OUT)
        watch = PressureWatch(engine, Pulse(engine), list)
        watch.look_on()
        await until(lambda: engine.looks > 2)
        engine.set_stats(job=Job.NONE)
        await until(lambda: not watch.is_looking)
        watch.stop()

    asyncio.run(run())


@pytest.mark.parametrize("fds", [TierFds(), dataclasses.replace(ON_DISK, disk=-1)])
def test_nobody_looks_where_nothing_can_go_to_disk(fds):
    async def run() -> None:
        watch = PressureWatch(engine := Engine(fds), Pulse(engine), list)
        watch.look_on()
        assert watch.is_looking is False

    asyncio.run(run())


def test_a_look_asks_once_how_much_memory_is_left(monkeypatch, tmp_path):
    asked = []

    def look(pids, hierarchies):
        asked.append((pids, hierarchies))
        return Headroom(1 << 60, "a limit")

    monkeypatch.setattr(pressure, "look", look)
    assert pressure._look([], [], tmp_path / "none") == ("", True)
    assert len(asked) == 1
