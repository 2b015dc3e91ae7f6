# SPDX-License-Identifier: GPL-2.0-or-later
"""The embedded guest hands its memory over, to our own server with a handler that only records."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest

from tests.support.guest import Guest, GuestError, touch_order
from tests.support.handoff import RecordingHandler, further_limits, open_fds, serving
from vmmswap.errors import BusyError, NotSupportedError
from vmmswap.linux import userfaultfd
from vmmswap.linux.userfaultfd import Feature

REGIONS = ["2M", "1M,memfd=1", "1M,memfd=1,offset=4M"]


@pytest.fixture(autouse=True)
def no_fd_leaks():
    before = open_fds()
    yield
    assert open_fds() == before


@contextlib.asynccontextmanager
async def guest_at(path, regions=REGIONS, **options):
    guest = Guest(regions, socket=path, **options)
    await asyncio.to_thread(guest.start_program)
    try:
        yield guest
    finally:
        await asyncio.to_thread(guest.close)


async def in_thread(call, *args, **kwargs):
    return await asyncio.to_thread(call, *args, **kwargs)


@pytest.mark.parametrize("api", ["monitor", "self"])
@pytest.mark.parametrize("uffd", ["device", "syscall"])
async def test_registers_all_regions(tmp_path, api, uffd):
    handler = RecordingHandler()
    path = tmp_path / "web.sock"
    async with serving(handler, path), guest_at(path, api=api, options=["--uffd", uffd]) as guest:
        assert await in_thread(guest.wait_ready) == "web"
        status = await in_thread(guest.status)
        (request,) = handler.requests
        assert request.peer.pid == guest.pid
        assert request.pins is True
        assert request.process.dummy_page == status.dummy_page != 0
        assert request.process.is_proven
        assert not further_limits(request.process)
        assert [
            (region.addr, region.size_bytes, region.offset_bytes, region.memfd)
            for region in request.memory.regions
        ] == [(region.addr, region.size, region.offset, region.memfd) for region in status.regions]


async def test_backends_are_added_one_by_one_with_their_own_addresses(tmp_path):
    handler = RecordingHandler()
    path = tmp_path / "web.sock"
    async with serving(handler, path), guest_at(path) as guest:
        await in_thread(guest.wait_ready)
        await in_thread(guest.fill)
        made = await in_thread(guest.backend, 3)
        processes = {entry.process: entry for entry in await in_thread(guest.processes)}
        added = handler.requests[1:]
        assert {request.process.pid for request in added} == {processes[index].pid for index in made}
        assert all(request.process.is_proven for request in added)
        assert all(request.process.dummy_page for request in added)
        done = await in_thread(guest.verify)
        assert (done.wrong_bytes, done.bytes) == (0, 4 * (4 << 20))


async def test_backend_touches_nothing_before_ok(tmp_path):
    handler = RecordingHandler()
    path = tmp_path / "web.sock"
    async with serving(handler, path), guest_at(path) as guest:
        await in_thread(guest.wait_ready)
        handler.gate = asyncio.Event()
        handler.entered.clear()
        job = await in_thread(guest.start, "backend 1")
        await handler.entered.wait()
        (backend,) = [e for e in await in_thread(guest.processes) if e.kind == "backend"]
        assert backend.state == "starting"
        assert not job.is_done()
        handler.gate.set()
        assert (await in_thread(job.wait)).made == [backend.process]


async def test_refused_backend_is_ended(tmp_path):
    handler = RecordingHandler()
    path = tmp_path / "web.sock"
    async with serving(handler, path), guest_at(path) as guest:
        await in_thread(guest.wait_ready)
        handler.refuse_with = NotSupportedError("no more processes")
        with pytest.raises(GuestError, match="backend"):
            await in_thread(guest.backend, 1)
        await in_thread(
            guest.wait_until, lambda: guest.handoff().state == "lost", 60, "the connection to be closed"
        )
        assert "no more processes" in (await in_thread(guest.status)).handoff.message


async def test_refusal_is_reported_and_register_tries_again(tmp_path):
    handler = RecordingHandler()
    handler.refuse_with = BusyError("web has a VM already")
    path = tmp_path / "web.sock"
    async with serving(handler, path), guest_at(path) as guest:
        with pytest.raises(GuestError, match="web has a VM already"):
            await in_thread(guest.wait_ready)
        handler.refuse_with = None
        await in_thread(guest.register)
        await in_thread(guest.wait_handoff, "ready")


@pytest.mark.parametrize(
    ("api", "options", "message"),
    [
        ("monitor", ["--user-mode-only", "--uffd", "syscall"], "user mode"),
        (f"self={int(Feature.SIGBUS)}", [], "SIGBUS"),
    ],
)
async def test_wrong_userfaultfds_are_refused(tmp_path, api, options, message):
    path = tmp_path / "web.sock"
    async with serving(RecordingHandler(), path), guest_at(path, api=api, options=options) as guest:
        with pytest.raises(GuestError, match=message):
            await in_thread(guest.wait_ready)


async def test_says_what_it_promises_about_pins(tmp_path):
    handler = RecordingHandler()
    path = tmp_path / "web.sock"
    async with serving(handler, path), guest_at(path, options=["--pins", "no", "--no-dummy"]) as guest:
        await in_thread(guest.wait_ready)
        assert handler.requests[0].pins is False
        assert handler.requests[0].process.dummy_page is None


async def test_waits_for_a_socket_that_comes_later_and_gives_up_in_the_end(tmp_path):
    path = tmp_path / "web.sock"
    async with guest_at(path) as guest:
        await in_thread(guest.wait_handoff, "connecting")
        async with serving(RecordingHandler(), path):
            assert await in_thread(guest.wait_ready) == "web"
        await in_thread(guest.wait_handoff, "lost")
    async with guest_at(path, options=["--tries", "2"]) as guest:
        with pytest.raises(GuestError, match="nobody listens"):
            await in_thread(guest.wait_ready)


def test_registers_again_when_the_monitor_ends_before_ready(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "web.sock"))
        listener.listen()
        listener.settimeout(60)
        with Guest(["1M"], socket=tmp_path / "web.sock") as guest:
            for _ in range(3):
                connection, _ = listener.accept()
                with connection:
                    assert connection.recv(1 << 20).endswith(b"\n")
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 20)
                connection.sendall(b'{"type": "ready", "name": "web"}\n')
                assert guest.wait_ready() == "web"


@pytest.mark.parametrize(
    "reply",
    [
        b"nonsense\n",
        b"{}\n",
        b'{"type":"ok"}\n',
        b'{"type":"ready"}\n{"type":"ready"}\n',
        b"x" * 5000,
    ],
)
def test_a_monitor_that_talks_nonsense_is_left_alone(tmp_path, reply):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "web.sock"))
        listener.listen()
        listener.settimeout(60)
        with Guest(["1M"], socket=tmp_path / "web.sock") as guest:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 20)
                connection.sendall(reply)
                assert guest.wait_handoff("refused").error == "unexpected"


async def test_control_answers_while_workers_wait_for_pages(tmp_path):
    """Nobody serves the faults, so the workers wait; unregistering wakes them."""
    handler = RecordingHandler()
    handler.keeps = True
    path = tmp_path / "web.sock"
    async with serving(handler, path), guest_at(path, ["1M"]) as guest:
        await in_thread(guest.wait_ready)
        (request,) = handler.requests
        (region,) = request.memory.regions
        userfaultfd.register_missing(request.process.uffd, region.addr, region.size_bytes)
        job = await in_thread(guest.start, touch_order(7, 2))
        status = await in_thread(
            guest.wait_status, lambda status: status.stuck_us > 20_000, 60, "a worker to wait"
        )
        assert status.longest_stall_us >= status.stuck_us
        assert not job.is_done()
        (thread,) = [thread for thread in await in_thread(guest.threads) if thread["stuck_us"]]
        assert thread["page"] == 7
        userfaultfd.unregister(request.process.uffd, region.addr, region.size_bytes)
        done = await in_thread(job.wait)
        assert done.longest_us >= 20_000
        assert done.wrong_bytes == 0
    for fd in handler.kept:
        os.close(fd)


async def test_ends_at_once_while_workers_wait_for_pages(tmp_path):
    handler = RecordingHandler()
    handler.keeps = True
    path = tmp_path / "web.sock"
    async with serving(handler, path), guest_at(path, ["1M"]) as guest:
        await in_thread(guest.wait_ready)
        (request,) = handler.requests
        (region,) = request.memory.regions
        userfaultfd.register_missing(request.process.uffd, region.addr, region.size_bytes)
        await in_thread(guest.start, "verify")
        await in_thread(guest.start, "fork 2")  # waits for its event to be read
        await in_thread(guest.wait_status, lambda status: status.stuck_us > 0, 60, "a worker to wait")
        await in_thread(guest.close)
        assert guest.process is not None
        assert guest.process.returncode == 0
    for fd in handler.kept:
        os.close(fd)
