# SPDX-License-Identifier: GPL-2.0-or-later
"""The hand-off over real sockets with real memfds and userfaultfds.

The VMM is this process unless said otherwise.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import mmap
import os
import re
import socket

import pytest

from tests.support.handoff import (
    GuestMemory,
    Mapper,
    RecordingHandler,
    further_limits,
    open_fds,
    refused,
    register,
    register_message,
    replies,
    send,
    serving,
)
from vmmswap.errors import (
    AccessDeniedError,
    BusyError,
    InvalidRegionError,
    NotSupportedError,
    ProtocolError,
)
from vmmswap.handoff import fds
from vmmswap.handoff.client import Region, VmmClient
from vmmswap.handoff.messages import encode
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.handoff.requests import Memory
from vmmswap.handoff.server import HandoffServer
from vmmswap.linux import userfaultfd
from vmmswap.linux.files import file_id
from vmmswap.linux.userfaultfd import Feature

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the monitor does")


@pytest.fixture(autouse=True)
def no_fd_leaks():
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def guest():
    with GuestMemory() as memory:
        yield memory


async def test_register_over_the_socket_in_the_file_system(tmp_path, guest):
    handler = RecordingHandler()
    async with serving(handler, tmp_path / "web.sock"):
        with await asyncio.to_thread(VmmClient.connect, tmp_path / "web.sock") as client:
            assert (
                await asyncio.to_thread(client.register, [guest.region], [guest.memfd], guest.uffd) == "web"
            )
        assert await handler.lost.get() is None
    (request,) = handler.requests
    assert (request.peer.pid, request.peer.uid, request.peer.gid) == (os.getpid(), os.getuid(), os.getgid())
    assert request.memory == Memory(os.getpid(), (guest.region,), (file_id(guest.memfd),))
    assert (request.pins, request.qmp, request.process.dummy_page) == (True, None, None)
    assert request.process.is_proven
    assert not further_limits(request.process)


async def test_handler_keeps_the_fds_that_it_releases(guest):
    handler = RecordingHandler()
    handler.keeps = True
    async with serving(handler) as connect:
        client, _ = await register(connect, guest, pins=False, qmp="/run/web.qmp")
        (request,) = handler.requests
        process = request.process
        assert {process.uffd, *request.memfds, request.peer.pidfd} == set(handler.kept)
        assert fds.pid_of(process.pidfd, "pidfd") == os.getpid()
        assert file_id(request.memfds[0]) == file_id(guest.memfd)
        assert not any(os.get_inheritable(fd) for fd in handler.kept)
        assert not os.get_blocking(process.uffd)
        assert (request.pins, request.qmp) == (False, "/run/web.qmp")
        client.close()
    for fd in handler.kept:
        os.close(fd)


async def test_registering_changes_no_page_of_the_guest(guest):
    blocks = guest.used_blocks
    async with serving(RecordingHandler()) as connect:
        client = VmmClient(connect())
        await asyncio.to_thread(client.register, [guest.region], [guest.memfd], guest.uffd)
        client.close()
    assert guest.used_blocks == blocks
    assert guest.map[: 5 * PAGE_SIZE] == b"\xa5" * (4 * PAGE_SIZE) + bytes(PAGE_SIZE)


async def test_message_in_arbitrary_pieces(guest):
    handler = RecordingHandler()
    async with serving(handler) as connect:
        sock = connect()
        data = register_message(guest)
        send(sock, data[:1], [guest.uffd, guest.memfd])
        for idx in range(1, len(data)):
            sock.send(data[idx : idx + 1])
            await asyncio.sleep(0)
        sock.shutdown(socket.SHUT_WR)
        assert await replies(sock) == [{"type": "ready", "name": "web"}]


async def test_process_that_sends_is_the_peer_not_the_one_that_connected(guest):
    handler = RecordingHandler()
    async with serving(handler) as connect:
        sock = connect()
        sock.set_inheritable(True)
        child = await asyncio.to_thread(start_sender, guest, sock)
        with child:
            sock.setblocking(False)
            reply = await asyncio.get_running_loop().sock_recv(sock, 1000)
            assert json.loads(reply)["type"] == "ready"
            (request,) = handler.requests
            assert request.peer.pid == request.memory.pid == child.pid != os.getpid()
            assert request.process.is_proven
            # Only the process that registered may say more.
            send(sock, encode("remove-region", [guest.region]))
            (reply,) = await replies(sock)
            assert reply["error"] == AccessDeniedError.dbus_name
        assert isinstance(await handler.lost.get(), AccessDeniedError)


def start_sender(guest, sock):
    """A process that inherits the connected socket and registers on it."""
    number = os.dup(sock.fileno())
    os.set_inheritable(number, True)
    try:
        return Mapper(guest.memfd, guest.size_bytes, "send-on", str(number), inherit=(number,))
    finally:
        os.close(number)


async def test_add_process(guest):
    handler = RecordingHandler()
    async with serving(handler) as connect:
        client, _ = await register(connect, guest)
        with client, await asyncio.to_thread(Mapper, guest.memfd, guest.size_bytes) as other:
            region = Region(other.addr, guest.size_bytes, 0, 0)
            await asyncio.to_thread(
                client.add_process, [region], other.uffd, other.pidfd, dummy_page=other.dummy_page
            )
            process = handler.requests[-1].process
            assert (process.pid, process.regions, process.dummy_page) == (
                other.pid,
                (region,),
                other.dummy_page,
            )
            assert process.is_proven
            assert process.unlisted == ()


async def test_add_process_that_lists_half_of_what_it_maps(guest):
    handler = RecordingHandler()
    async with serving(handler) as connect:
        client, _ = await register(connect, guest)
        with client, await asyncio.to_thread(Mapper, guest.memfd, guest.size_bytes) as other:
            half = Region(other.addr, guest.size_bytes // 2, 0, 0)
            await asyncio.to_thread(client.add_process, [half], other.uffd, other.pidfd)
            process = handler.requests[-1].process
            assert [mapping.start for mapping in process.unlisted] == [other.addr]
            assert "mapped without a userfaultfd" in process.limits[-1]


@pytest.mark.parametrize("with_dummy", [True, False])
async def test_add_process_with_a_uffd_of_another_process(guest, with_dummy):
    handler = RecordingHandler()
    async with serving(handler) as connect:
        client, _ = await register(connect, guest)
        with (
            client,
            await asyncio.to_thread(Mapper, guest.memfd, guest.size_bytes) as first,
            await asyncio.to_thread(Mapper, guest.memfd, guest.size_bytes) as second,
            pytest.raises(InvalidRegionError, match="userfaultfd"),
        ):
            await asyncio.to_thread(
                client.add_process,
                [Region(first.addr, guest.size_bytes, 0, 0)],
                second.uffd,
                first.pidfd,
                dummy_page=first.dummy_page if with_dummy else None,
            )
        error = await handler.lost.get()
        assert isinstance(error, InvalidRegionError)  # we closed: no effect on the VM
    assert len(handler.requests) == 1


async def test_add_process_of_memory_that_is_not_registered(guest):
    async with serving(RecordingHandler()) as connect:
        client, _ = await register(connect, guest)
        with client, await asyncio.to_thread(Mapper, guest.memfd, guest.size_bytes) as other:
            beyond = Region(other.addr, guest.size_bytes + PAGE_SIZE, 0, 0)
            with pytest.raises(InvalidRegionError, match=r"regions\[0\].offset: .* one registered region"):
                await asyncio.to_thread(client.add_process, [beyond], other.uffd, other.pidfd)


async def test_add_process_that_has_ended(guest):
    async with serving(RecordingHandler()) as connect:
        client, _ = await register(connect, guest)
        with client, await asyncio.to_thread(Mapper, guest.memfd, guest.size_bytes) as other:
            other.end()
            with pytest.raises(ProtocolError, match=r"fds\[1\]: the process of the pidfd has ended"):
                await asyncio.to_thread(
                    client.add_process, [Region(other.addr, guest.size_bytes, 0, 0)], other.uffd, other.pidfd
                )


async def test_add_and_remove_region(guest):
    handler = RecordingHandler()
    with GuestMemory(pages=8) as more:
        async with serving(handler) as connect:
            client, _ = await register(connect, guest)
            with client:
                await asyncio.to_thread(client.add_region, [more.region], [more.memfd])
                request = handler.requests[-1]
                added = Region(more.addr, more.size_bytes, 0, 1)
                assert request.regions == (added,)
                assert request.files == (file_id(more.memfd),)
                assert (len(request.memfds), request.uffd) == (1, None)
                await asyncio.to_thread(client.remove_region, [added])
                assert handler.requests[-1].regions == (added,)
                # The same again, with a uffd of its own this time: the memfd is known by now.
                await asyncio.to_thread(client.add_region, [more.region], [more.memfd], more.uffd)
                request = handler.requests[-1]
                assert request.regions == (added,)
                assert request.memfds == ()
                assert request.uffd is not None
                with pytest.raises(InvalidRegionError, match=r"regions\[0\].* overlaps a registered region"):
                    await asyncio.to_thread(client.add_region, [more.region], [more.memfd])


async def test_remove_region_that_is_not_registered_or_the_last(guest):
    for region, message in (
        (Region(guest.addr, PAGE_SIZE, 0, 0), "no such region is registered"),
        (guest.region, "all that the VM has"),
    ):
        async with serving(RecordingHandler()) as connect:
            client, _ = await register(connect, guest)
            with client, pytest.raises(InvalidRegionError, match=message):
                await asyncio.to_thread(client.remove_region, [region])
        guest.renew_uffd()


async def test_attach_and_its_connections_end(guest):
    handler = RecordingHandler()
    async with serving(handler) as connect:
        with Mapper(guest.memfd, guest.size_bytes) as other, VmmClient(connect()) as client:
            assert await asyncio.to_thread(client.attach, other.pidfd, force=True) == "web"
        (request,) = handler.requests
        assert (request.pid, request.force, request.pins) == (other.pid, True, True)
        assert await refused(connect, register_message(guest), [guest.uffd, guest.memfd]) == (
            "Busy",
            "the name 'web' is taken by process 7 (vmm): `vmmswapctl exit web` releases that VM; another VM"
            " needs a name, and a socket, of its own",
        )
    assert handler.lost.empty()


async def test_attach_by_another_uid():
    handler = RecordingHandler()
    own = os.pidfd_open(os.getpid())
    async with serving(handler) as connect:
        sock = connect()
        control = (socket.SOL_SOCKET, socket.SCM_RIGHTS, own.to_bytes(4, "little"))
        someone = (os.getpid()).to_bytes(4, "little") + (65534).to_bytes(4, "little") * 2
        sock.sendmsg([encode("attach")], [control, (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, someone)])
        (reply,) = await replies(sock)
        assert reply["error"] == AccessDeniedError.dbus_name
        # Before Linux 6.5 no pidfd of the sender comes with a message: its uid is looked up, and is another.
        assert re.search("only uid 0|is not of uid 65534", reply["message"])
    os.close(own)


async def test_second_connection_is_busy_and_without_effect(guest):
    handler = RecordingHandler()
    handler.gate = asyncio.Event()
    async with serving(handler) as connect:
        first = asyncio.create_task(register(connect, guest))
        await handler.entered.wait()
        message = register_message(guest)
        assert (await refused(connect, message, [guest.uffd, guest.memfd]))[0] == "Busy"
        handler.gate.set()
        client, name = await first
        assert name == "web"
        assert (await refused(connect, message, [guest.uffd, guest.memfd]))[0] == "Busy"
        assert (await refused(connect, b"nonsense\n"))[0] == "Busy"
        assert handler.lost.empty()
        client.close()


async def test_refused_register_leaves_the_socket_free(guest):
    handler = RecordingHandler()
    handler.refuse_with = NotSupportedError("not today")
    async with serving(handler) as connect:
        with pytest.raises(NotSupportedError, match="not today"):
            await register(connect, guest)
        handler.refuse_with = None
        client, name = await register(connect, guest)
        assert name == "web"
        client.close()


async def test_bug_in_the_handler_is_told_without_its_insides(guest, caplog):
    handler = RecordingHandler()
    handler.refuse_with = RuntimeError("secret")
    async with serving(handler) as connect:
        sock = connect()
        send(sock, register_message(guest), [guest.uffd, guest.memfd])
        (reply,) = await replies(sock)
    assert reply["error"] == "org.vmmswap.Error.Internal"
    assert "secret" not in reply["message"]
    assert "secret" in caplog.text


async def test_second_register_on_a_registered_connection(guest):
    handler = RecordingHandler()
    async with serving(handler) as connect:
        client, _ = await register(connect, guest)
        with client, pytest.raises(BusyError):
            await asyncio.to_thread(client.register, [guest.region], [guest.memfd], guest.uffd)
        assert isinstance(await handler.lost.get(), BusyError)
    assert len(handler.requests) == 1


async def test_connection_goes_on_after_a_monitor_restart(guest):
    handler = RecordingHandler()
    vmm, stored = socket.socketpair()
    memory = Memory(os.getpid(), (guest.region,), (file_id(guest.memfd),))
    server = HandoffServer(handler)
    server.adopt(stored, memory)
    with VmmClient(vmm) as client, await asyncio.to_thread(Mapper, guest.memfd, guest.size_bytes) as other:
        region = Region(other.addr, guest.size_bytes, 0, 0)
        await asyncio.to_thread(client.add_process, [region], other.uffd, other.pidfd)
    assert await handler.lost.get() is None
    assert handler.requests[0].process.regions == (region,)
    await server.close()


async def test_closing_the_server_tells_the_handler_nothing(guest):
    handler = RecordingHandler()
    async with serving(handler) as connect:
        client, _ = await register(connect, guest)
    assert handler.lost.empty()
    client.close()


# Firecracker: private memory, an array, no newline, no reply, and a connection whose end means nothing.


@pytest.fixture
def private_region():
    memory = mmap.mmap(-1, 64 * PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = ctypes.c_char.from_buffer(memory)
    yield Region(ctypes.addressof(view), len(memory), 0, 0)
    del view
    memory.close()


def firecracker_message(region, **changes):
    item = {"base_host_virt_addr": region.addr, "size": region.size_bytes, "offset": 0}
    return json.dumps([item | {"page_size": PAGE_SIZE} | changes]).encode()


@pytest.mark.parametrize("piece_bytes", [1, 7, 10_000])
@pytest.mark.parametrize("is_closed", [False, True])
async def test_firecracker(guest, private_region, piece_bytes, is_closed):
    handler = RecordingHandler()
    data = firecracker_message(private_region, name='odd "]} \\')
    userfaultfd.api(guest.uffd, Feature.EVENT_REMOVE)
    async with serving(handler) as connect:
        sock = connect()
        send(sock, data[:piece_bytes], [guest.uffd])
        for idx in range(piece_bytes, len(data), piece_bytes):
            sock.send(data[idx : idx + piece_bytes])
            await asyncio.sleep(0)
        if is_closed:
            sock.close()
        await asyncio.wait_for(handler.entered.wait(), 30)
        (request,) = handler.requests
        assert request.regions == (private_region,)
        assert request.peer.pid == os.getpid()
        assert handler.messages == [data]
        assert is_closed or await replies(sock) == []
    assert handler.lost.empty()


# Refusals: of what the kernel says about the fds.


async def test_no_userfaultfd(guest):
    async with serving(RecordingHandler()) as connect:
        kind, message = await refused(connect, register_message(guest), [guest.memfd, guest.memfd])
    assert (kind, message) == ("ProtocolError", "fds[0]: '/memfd:guest (deleted)' is not a userfaultfd")


async def test_no_memfd(guest):
    on_disk = os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR)
    os.ftruncate(on_disk, guest.size_bytes)
    reader, writer = os.pipe()
    directory = os.open("/", os.O_RDONLY)
    try:
        async with serving(RecordingHandler()) as connect:
            for fd in (guest.uffd, reader, directory, on_disk):
                kind, message = await refused(connect, register_message(guest), [guest.uffd, fd])
                assert kind == "InvalidRegion"
                assert message.startswith("regions[0].memfd: ")
                assert "is neither a memfd nor a file on tmpfs" in message
    finally:
        for fd in (on_disk, reader, writer, directory):
            os.close(fd)


async def test_memfd_that_cannot_be_punched_or_read(guest):
    read_only = os.open(f"/proc/self/fd/{guest.memfd}", os.O_RDONLY)
    path_only = os.open(f"/proc/self/fd/{guest.memfd}", os.O_PATH)
    try:
        async with serving(RecordingHandler()) as connect:
            for fd in (read_only, path_only):
                _, message = await refused(connect, register_message(guest), [guest.uffd, fd])
                assert "is not open for reading and writing" in message
    finally:
        os.close(read_only)
        os.close(path_only)


async def test_sealed_memfd(guest):
    fcntl.fcntl(guest.memfd, fcntl.F_ADD_SEALS, 0x10)  # F_SEAL_FUTURE_WRITE: the mapping that exists may stay
    async with serving(RecordingHandler()) as connect:
        kind, message = await refused(connect, register_message(guest), [guest.uffd, guest.memfd])
    assert kind == "InvalidRegion"
    assert "sealed with F_SEAL_FUTURE_WRITE" in message


async def test_hugetlb_memfd(guest):
    try:
        huge = os.memfd_create("huge", os.MFD_HUGETLB)
    except OSError as error:
        pytest.skip(f"no hugetlb memfd on this kernel: {error.strerror}")
    try:
        async with serving(RecordingHandler()) as connect:
            kind, message = await refused(connect, register_message(guest), [guest.uffd, huge])
    finally:
        os.close(huge)
    assert kind == "InvalidRegion"
    assert "hugetlb" in message


async def test_file_on_tmpfs_is_as_good_as_a_memfd(guest):
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    os.ftruncate(fd, guest.size_bytes)
    try:
        assert fds.check_memfd(fd, "memfd", guest.size_bytes) == file_id(fd)
    finally:
        os.close(fd)


async def test_memfd_too_small(guest):
    os.ftruncate(guest.memfd, guest.size_bytes - 1)
    async with serving(RecordingHandler()) as connect:
        kind, message = await refused(connect, register_message(guest), [guest.uffd, guest.memfd])
    assert kind == "InvalidRegion"
    has, needs = guest.size_bytes - 1, guest.size_bytes
    assert message == f"regions[0].memfd: the memfd has {has} bytes, the region ends at {needs}"


async def test_two_memfds_that_are_one_file(guest):
    regions = [
        Region(guest.addr, 2 * PAGE_SIZE, 0, 0),
        Region(guest.addr + 2 * PAGE_SIZE, PAGE_SIZE, PAGE_SIZE, 1),
    ]
    async with serving(RecordingHandler()) as connect:
        kind, message = await refused(
            connect, encode("register", regions), [guest.uffd, guest.memfd, guest.memfd]
        )
    assert kind == "InvalidRegion"
    assert "regions[1].offset" in message


# Refusals: of what the process does not map as claimed.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: Region(0x10000, PAGE_SIZE, 0, 0), "0x10000 is not mapped in the process"),
        (lambda guest: Region(guest.dummy.addr, PAGE_SIZE, 0, 0), "which is not the region's memfd"),
        (lambda guest: Region(guest.addr, PAGE_SIZE, PAGE_SIZE, 0), r"regions[0].offset: 4096 is not what"),
    ],
)
async def test_region_that_is_not_mapped_as_claimed(guest, change, message):
    async with serving(RecordingHandler()) as connect:
        kind, text = await refused(connect, encode("register", [change(guest)]), [guest.uffd, guest.memfd])
    assert kind == "InvalidRegion"
    assert message in text


async def test_private_mapping(guest):
    private = mmap.mmap(guest.memfd, PAGE_SIZE, flags=mmap.MAP_PRIVATE)
    view = ctypes.c_char.from_buffer(private)
    region = Region(ctypes.addressof(view), PAGE_SIZE, 0, 0)
    async with serving(RecordingHandler()) as connect:
        _, message = await refused(connect, encode("register", [region]), [guest.uffd, guest.memfd])
    assert "it is private: map the memfd with MAP_SHARED" in message


async def test_second_mapping_is_told(guest):
    handler = RecordingHandler()
    with mmap.mmap(guest.memfd, PAGE_SIZE):
        async with serving(handler) as connect:
            client, _ = await register(connect, guest)
            client.close()
    assert len(handler.requests[0].process.unlisted) == 1
    assert "mapped without a userfaultfd" in further_limits(handler.requests[0].process)[0]


async def test_dummy_page_that_is_not_mapped(guest):
    async with serving(RecordingHandler()) as connect:
        data = register_message(guest, dummy_page=0x10000)
        kind, message = await refused(connect, data, [guest.uffd, guest.memfd])
    assert (kind, message) == ("InvalidRegion", "dummy_page: 0x10000 is not mapped in the process")
