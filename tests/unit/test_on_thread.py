# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk that stands still while a VM registers holds up nobody else, and leaves nothing when it goes on."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from vmmswap.config import load
from vmmswap.engine import Engine, EngineConfig
from vmmswap.monitor import register
from vmmswap.monitor.new_vm import NewProcess, NewVm
from vmmswap.monitor.on_thread import made_on_thread
from vmmswap.monitor.register import create_engine

NEW = NewVm(NewProcess(0, -1, -1, ()), (), 0)
DEADLINE_S = 60.0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The swap directory's disk, which goes on once this is set."""
    goes_on = threading.Event()

    def create(config: EngineConfig, *, store_fd: int | None = None, mover: None) -> Engine:
        assert goes_on.wait(DEADLINE_S)
        return Engine(config, store_fd=store_fd, mover=mover)

    monkeypatch.setattr(register, "Engine", create)
    return goes_on


def test_an_engine_is_created_beside_the_event_loop(disk: threading.Event, tmp_path: Path) -> None:
    async def run() -> None:
        creating = asyncio.create_task(create_engine(NEW, load("web", []), tmp_path))
        await asyncio.sleep(0)
        assert not creating.done()
        disk.set()
        (await creating).close()

    asyncio.run(run())


def test_what_comes_after_its_waiter_was_cancelled_is_closed() -> None:
    goes_on, closed = threading.Event(), threading.Event()

    def make() -> int:
        assert goes_on.wait(DEADLINE_S)
        return os.open(os.devnull, os.O_RDONLY)

    def close(fd: int) -> None:
        os.close(fd)
        closed.set()

    async def run() -> None:
        making = asyncio.create_task(made_on_thread(make, close))
        await asyncio.sleep(0)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        goes_on.set()
        assert await asyncio.to_thread(closed.wait, DEADLINE_S)

    asyncio.run(run())


def test_an_error_reaches_the_waiter() -> None:
    def fail() -> int:
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        asyncio.run(made_on_thread(fail, os.close))
