# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that pass files whose close() waits: their own connection stops, and nothing else of the monitor.

Each test passes such a file on some way that ends in the monitor closing it, and then registers a VM by
another connection while that close() is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.blocking_files import FuseFile, LingeringSocket
from tests.support.handoff import GuestMemory, RecordingHandler, open_fds, register, send, serving
from vmmswap.handoff.messages import encode

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the monitor does")

DEADLINE_S = 120.0


@pytest.fixture
def guest() -> Iterator[GuestMemory]:
    with GuestMemory() as memory:
        yield memory


class Blocking:
    """An fd that is only in flight once it was sent. end() lets all go that wait for its close()."""

    def __init__(self, kind: str, directory: Path, stack: contextlib.ExitStack) -> None:
        self._tcp = stack.enter_context(LingeringSocket()) if kind == "tcp" else None
        self._fuse = stack.enter_context(FuseFile(directory)) if kind == "fuse" else None

    def send(self, sock: socket.socket, data: bytes, count: int = 1) -> None:
        """Nobody receives it before we have closed ours: this is the event loop's thread."""
        if self._tcp:
            send(sock, data, [self._tcp.fileno()] * count)
            self._tcp.sock.close()
        if self._fuse:
            send(sock, data, [self._fuse.fd] * count)
            self._fuse.close()
            self._fuse.silence()

    def waits_in_flight(self) -> bool:
        """Also if nobody has received it: a FUSE server is asked for nothing that is waited for then."""
        return self._tcp is not None

    def end(self) -> None:
        for item in (self._tcp, self._fuse):
            if item:
                item.end()


@pytest.fixture(params=["tcp", "fuse"])
def blocking(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Blocking]:
    if request.param == "fuse" and (reason := FuseFile.missing()):
        pytest.skip(reason)
    before = open_fds()
    with contextlib.ExitStack() as stack:
        made = Blocking(request.param, tmp_path, stack)
        stack.callback(made.end)  # first of all, or leaving would wait, too
        yield made
    until(lambda: closers() == 0)
    assert open_fds() == before


def closers() -> int:
    return sum(thread.name == "hand-off" for thread in threading.enumerate())


def until(condition) -> None:
    end_s = DEADLINE_S
    while not condition():
        threading.Event().wait(0.01)
        end_s -= 0.01
        assert end_s > 0


async def stuck() -> None:
    """Until exactly one close() waits; the same two looks in a row."""
    async with asyncio.timeout(DEADLINE_S):
        while not is_stuck():
            await asyncio.sleep(0.01)


def is_stuck() -> bool:
    tids = [thread.native_id for thread in threading.enumerate() if thread.name == "hand-off"]
    return len(tids) == 1 and is_closing(tids[0])


def is_closing(tid: int | None) -> bool:
    with contextlib.suppress(OSError, IndexError):
        call = Path(f"/proc/self/task/{tid}/syscall").read_text().split()[0]
        return call in ("3", "57", "47", "212")  # close, or recvmsg, by which nothing was received
    return False


async def check_others_are_served(connect, guest: GuestMemory) -> None:
    client, name = await register(connect, guest)
    client.close()
    assert name == "web"


async def first_line(sock: socket.socket) -> bytes:
    sock.setblocking(False)
    async with asyncio.timeout(DEADLINE_S):
        try:
            return await asyncio.get_running_loop().sock_recv(sock, 65536)
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize("count", [1, 2, 253])
async def test_in_a_message(blocking: Blocking, guest: GuestMemory, count: int) -> None:
    async with serving(RecordingHandler()) as connect:
        sock = connect()
        blocking.send(sock, encode("register", [guest.region]), count)
        assert b'"error"' in await first_line(sock)
        await stuck()
        await check_others_are_served(connect, guest)
        blocking.end()


async def test_queued_behind_a_message(blocking: Blocking, guest: GuestMemory) -> None:
    """Nobody has received it when the connection is closed."""
    async with serving(RecordingHandler()) as connect:
        sock = connect()
        send(sock, encode("register", [guest.region]))
        blocking.send(sock, b"x")
        assert b'"error"' in await first_line(sock)
        if blocking.waits_in_flight():
            await stuck()
        await check_others_are_served(connect, guest)
        blocking.end()


async def test_on_a_connection_that_is_refused(blocking: Blocking) -> None:
    async with serving(RecordingHandler(), connections_per_uid=1) as connect:
        waiting = connect()
        await asyncio.sleep(0)
        sock = connect()
        blocking.send(sock, b"x")
        assert await first_line(sock) == b""
        waiting.close()
        blocking.end()


async def test_beyond_the_monitors_own_limit(blocking: Blocking, guest: GuestMemory) -> None:
    """The kernel closes what it cannot give, in the name of whoever receives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving(RecordingHandler()) as connect:
        sock = connect()
        await asyncio.sleep(0.05)  # it is accepted
        numbers = open_fds()
        blocking.send(sock, encode("register", [guest.region]))
        free = next(number for number in range(soft) if number not in numbers)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            answer = asyncio.create_task(first_line(sock))
            await asyncio.wait([answer], timeout=0.5)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        client, _ = await register(connect, guest)
        client.close()
        blocking.end()
        assert b'"error"' in await answer


async def test_a_monitor_that_ends_does_not_wait(blocking: Blocking, guest: GuestMemory) -> None:
    async with serving(RecordingHandler()) as connect:
        sock = connect()
        blocking.send(sock, encode("register", [guest.region]))
        await first_line(sock)
        await stuck()
    assert closers() == 1  # the server is closed, and that close() still waits
    blocking.end()
