# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for a caller's sake ends when he leaves the bus; what the bus counts is counted with it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.bus import PrivateBus, private_bus
from vmmswap.bus.connection import Connection
from vmmswap.bus.dispatch import DBUS_ERROR, RemoteError
from vmmswap.bus.presence import CallerLeftError
from vmmswap.bus.transport import BusUnreachableError

__all__ = ["private_bus"]

SILENT = "org.vmmswap.vm.silent"


@pytest.fixture
async def service(private_bus: PrivateBus) -> AsyncIterator[Connection]:
    connection = Connection(private_bus.address)
    await connection.start()
    yield connection
    await connection.close()


@pytest.fixture
async def caller(private_bus: PrivateBus) -> AsyncIterator[Connection]:
    connection = Connection(private_bus.address)
    await connection.start()
    yield connection
    await connection.close()


async def for_ever(cancelled: asyncio.Event) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        cancelled.set()


async def test_work_is_cancelled_when_its_caller_leaves(service: Connection, caller: Connection) -> None:
    name, cancelled = caller.unique_name, asyncio.Event()
    waiting = [asyncio.create_task(service.presence.run(name, for_ever(cancelled))) for _ in range(2)]
    assert await service.presence.run(name, asyncio.sleep(0, "done")) == "done"  # the others wait on
    assert not any(task.done() for task in waiting)
    await caller.close()
    for task in waiting:
        with pytest.raises(CallerLeftError, match=f"{name} has left the bus"):
            await task
    assert cancelled.is_set()


async def test_who_has_left_before_is_not_waited_for(service: Connection, caller: Connection) -> None:
    name, cancelled = caller.unique_name, asyncio.Event()
    await caller.close()
    with pytest.raises(CallerLeftError):
        await service.presence.run(name, for_ever(cancelled))


async def test_with_the_bus_everybody_has_left(
    private_bus: PrivateBus, service: Connection, caller: Connection
) -> None:
    waiting = asyncio.create_task(service.presence.run(caller.unique_name, for_ever(asyncio.Event())))
    await service.list_names()  # asked for after the signal, so the bus has been told what to signal
    private_bus.stop()
    with pytest.raises((CallerLeftError, BusUnreachableError)):
        await waiting
    private_bus.start()
    await service.wait_connected()


async def test_a_reply_that_nobody_waits_for_is_owed_until_it_comes(
    private_bus: PrivateBus, service: Connection
) -> None:
    """The bus counts it: a slot that came back with the timeout would be one too many."""
    silent = Connection(private_bus.address)
    await silent.start()
    await silent.own_name(SILENT)
    silent.dispatcher.handle = lambda _message: None  # type: ignore[method-assign]
    settled = asyncio.Event()
    with pytest.raises(RemoteError, match="did not answer Ping") as caught:
        await service.call(
            SILENT,
            "/",
            "org.freedesktop.DBus.Peer",
            "Ping",
            timeout_s=0.01,
            on_settled=settled.set,
        )
    assert caught.value.error_name == DBUS_ERROR + "NoReply"
    await service.list_names()
    assert not settled.is_set()
    await silent.close()  # the bus answers in its place
    await asyncio.wait_for(settled.wait(), 60)
