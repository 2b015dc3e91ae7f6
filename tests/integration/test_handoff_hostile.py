# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that are slow, broken or hostile: each gets one error at most, and no fd is leaked."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.handoff import GuestMemory, RecordingHandler, open_fds, refused, replies, send, serving
from vmmswap.errors import AccessDeniedError, ProtocolError
from vmmswap.handoff import ancillary, peer, proof
from vmmswap.handoff.ancillary import Credentials, receive_piece
from vmmswap.handoff.client import VmmClient, open_userfaultfd
from vmmswap.handoff.messages import MAX_MESSAGE_BYTES, encode
from vmmswap.handoff.probe import probe
from vmmswap.handoff.receiver import Limits
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.handoff.session import Claim, HandoffSession
from vmmswap.linux.owned import OwnedFds

SHORT_S = 0.05

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


# Time and size.


async def test_silent_peer():
    async with serving(RecordingHandler(), silence_s=SHORT_S) as connect:
        (reply,) = await replies(connect())
    assert reply == {
        "type": "error",
        "error": ProtocolError.dbus_name,
        "message": "no message within 0.05 s of connecting",
    }


async def test_peer_that_stops_in_the_middle(guest):
    async with serving(RecordingHandler(), message_s=SHORT_S) as connect:
        kind, message = await refused(connect, b'{"vmmswap":1,', [guest.uffd, guest.memfd])
    assert (kind, message) == ("ProtocolError", "the message did not end within 0.05 s of its first byte")


async def test_peer_that_ends_in_the_middle(guest):
    async with serving(RecordingHandler()) as connect:
        sock = connect()
        send(sock, b'{"vmmswap":1,', [guest.uffd, guest.memfd])
        sock.shutdown(socket.SHUT_WR)
        (reply,) = await replies(sock)
    assert reply["message"] == "the connection ended in the middle of a message"


async def test_peer_that_says_nothing_and_goes():
    handler = RecordingHandler()
    async with serving(handler) as connect:
        sock = connect()
        sock.shutdown(socket.SHUT_WR)
        assert await replies(sock) == []
        assert handler.lost.empty()


async def test_registered_vm_may_be_silent_for_longer(guest):
    handler = RecordingHandler()
    async with serving(handler, silence_s=1.0, message_s=5) as connect:
        client = VmmClient(connect())
        await asyncio.to_thread(client.register, [guest.region], [guest.memfd], guest.uffd)
        silent = asyncio.create_task(handler.lost.get())
        done, _ = await asyncio.wait([silent], timeout=1.5)
        assert not done
        client.close()
        assert await silent is None


@pytest.mark.parametrize("data", [b"x" * (MAX_MESSAGE_BYTES + 1), b'["' + b"]" * MAX_MESSAGE_BYTES])
async def test_message_without_end(data, guest):
    async with serving(RecordingHandler()) as connect:
        client = VmmClient(connect())
        with pytest.raises(ProtocolError, match="is longer than"):
            await asyncio.to_thread(client._ask, data, [guest.memfd], "ready")
        client.close()


async def test_message_of_just_1_mib_is_read():
    data = b'{"type":"x","a":"' + b" " * (MAX_MESSAGE_BYTES - 20) + b'"}\n'
    assert len(data) == MAX_MESSAGE_BYTES
    async with serving(RecordingHandler()) as connect:
        kind, message = await refused(connect, data)
    assert kind == "ProtocolError"
    assert message.startswith('type: "x" is none of')


async def test_too_many_connections(guest):
    async with serving(RecordingHandler(), connections_per_uid=2) as connect:
        waiting = [connect(), connect()]
        assert await replies(connect()) == []
        waiting[0].close()
        while True:  # until the server has noticed
            client = VmmClient(connect())
            try:
                await asyncio.to_thread(client.register, [guest.region], [guest.memfd], guest.uffd)
            except ProtocolError:
                continue
            finally:
                client.close()
            break


# Framing.


async def test_two_messages_in_one_segment(guest):
    handler = RecordingHandler()
    data = encode("register", [guest.region])
    async with serving(handler) as connect:
        kind, message = await refused(connect, data + data, [guest.uffd, guest.memfd])
    assert (kind, message) == (
        "ProtocolError",
        "more came after the end of the message: wait for each reply",
    )
    assert handler.requests == []


@pytest.mark.parametrize("with_fds", [False, True])
async def test_two_messages_sent_without_waiting(guest, with_fds):
    handler = RecordingHandler()
    data = encode("register", [guest.region])
    async with serving(handler) as connect:
        sock = connect()
        send(sock, data, [guest.uffd, guest.memfd])
        send(sock, data, [guest.uffd, guest.memfd] if with_fds else [])
        (reply,) = await replies(sock)
    assert reply["error"] == ProtocolError.dbus_name
    assert ("use one sendmsg" if with_fds else "wait for each reply") in reply["message"]
    assert handler.requests == []


@pytest.mark.parametrize("pause", [False, True])
async def test_fds_after_the_first_byte(guest, pause):
    """Refused whether or not the kernel gives both segments to one read."""
    data = encode("register", [guest.region])
    async with serving(RecordingHandler()) as connect:
        sock = connect()
        send(sock, data[:10])
        if pause:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        send(sock, data[10:], [guest.uffd, guest.memfd])
        (reply,) = await replies(sock)
    assert reply["message"] == "fds: 2 came later than the message's first byte: use one sendmsg"


@pytest.mark.parametrize("count", [0, 1, 3, 253])
async def test_missing_and_surplus_fds(guest, count):
    async with serving(RecordingHandler()) as connect:
        sent = ([guest.uffd] + [guest.memfd] * 252)[:count]
        kind, message = await refused(connect, encode("register", [guest.region]), sent)
    assert kind == "ProtocolError"
    assert message.startswith(f"fds: {count} came: {'missing' if count < 2 else 'surplus'}")


async def test_fewer_fds_allowed_than_came(guest):
    async with serving(RecordingHandler(), fds=1) as connect:
        _, message = await refused(connect, encode("register", [guest.region]), [guest.uffd, guest.memfd])
    assert message == "fds: 2 came: at most 1 in a message"


async def test_out_of_band_data_is_data(guest):
    """Without SO_OOBINLINE a registered VM could keep its monitor spinning with one urgent byte."""
    handler = RecordingHandler()
    async with serving(handler) as connect:
        sock = connect()
        client = VmmClient(sock)
        await asyncio.to_thread(client.register, [guest.region], [guest.memfd], guest.uffd)
        try:
            sock.send(b"\n", socket.MSG_OOB)
        except OSError as error:
            client.close()
            pytest.skip(f"no out-of-band data on this kernel's UNIX sockets: {error.strerror}")
        (reply,) = await replies(sock)
        assert reply["error"] == ProtocolError.dbus_name
        assert isinstance(await handler.lost.get(), ProtocolError)


# Control data and the sender.


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ancillary.prepare(ours)
        yield ours, theirs


def test_control_data_cut_off_by_our_own_fd_limit(pair):
    ours, theirs = pair
    before = open_fds()
    send(theirs, b"x", [0] * 8)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = next(number for number in range(soft) if number not in before)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 3, hard))
    try:
        with pytest.raises(ProtocolError, match="cut off"):
            receive_piece(ours, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_fds() == before


def test_room_for_all_that_can_come_at_once(pair):
    ours, theirs = pair
    send(theirs, b"x", [0] * 253)
    piece = receive_piece(ours, 1)
    assert len(piece.fds) == 253
    assert piece.credentials == Credentials(os.getpid(), os.getuid(), os.getgid())
    assert not any(os.get_inheritable(fd) for fd in (*piece.fds, *piece.pidfd))
    piece.close()


def test_sender_by_credentials_alone():
    """As on a kernel before 6.5, which has no SCM_PIDFD."""
    with OwnedFds() as pidfd:
        found = peer.identify(Credentials(os.getpid(), os.getuid(), os.getgid()), pidfd)
        assert (found.pid, found.uid, found.pidfd) == (os.getpid(), os.getuid(), pidfd[0])


@pytest.mark.parametrize(
    ("credentials", "error"),
    [
        (None, ProtocolError),
        (Credentials(0, 0, 0), ProtocolError),
        (Credentials(os.getpid(), 12345, 0), AccessDeniedError),
        (Credentials(1, 12345, 0), AccessDeniedError),
    ],
)
def test_sender_that_cannot_be_told(credentials, error):
    with OwnedFds() as pidfd, pytest.raises(error):
        peer.identify(credentials, pidfd)


def test_sender_that_has_ended():
    pid = os.posix_spawn("/bin/true", ["true"], {})
    pidfd = os.pidfd_open(pid)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    with OwnedFds() as none, pytest.raises(ProtocolError, match="ended"):
        peer.identify(Credentials(pid, 0, 0), none)
    with OwnedFds([pidfd]) as known, pytest.raises(ProtocolError, match="ended"):
        peer.identify(Credentials(pid, 0, 0), known)


def test_sender_of_another_pid_than_its_pidfd():
    with OwnedFds([os.pidfd_open(1)]) as pidfd, pytest.raises(ProtocolError, match="pidfd says 1"):
        peer.identify(Credentials(os.getpid(), 0, 0), pidfd)


def test_sender_whose_name_is_no_text():
    comm = Path("/proc/self/comm")
    name = comm.read_bytes()
    comm.write_bytes(b"\xff\xfe")
    try:
        with OwnedFds() as pidfd:
            assert peer.identify(Credentials(os.getpid(), os.getuid(), 0), pidfd).pid == os.getpid()
    finally:
        comm.write_bytes(name)


async def test_server_closed_while_a_hand_off_is_checked(guest, monkeypatch):
    """The check runs on a thread and ends there; what it came to is closed."""
    begun, end = threading.Event(), threading.Event()

    def held(*arguments):
        begun.set()
        end.wait()
        return probe(*arguments)

    monkeypatch.setattr(proof, "probe", held)
    handler = RecordingHandler()
    async with serving(handler) as connect:
        sock = connect()
        send(sock, encode("register", [guest.region]), [guest.uffd, guest.memfd])
        await asyncio.to_thread(begun.wait)
        (session,) = (task for task in asyncio.all_tasks() if task.get_name() == "hand-off session")
        release = asyncio.create_task(once_cancelled(session, end.set))
    await release
    assert handler.requests == []


async def once_cancelled(task, action):
    while not task.cancelling():
        await asyncio.sleep(0)
    action()


# Thousands of malformed hand-offs.

FD_KINDS = ("uffd", "memfd", "pidfd", "pipe", "socket", "directory", "another uffd", "small memfd")


@pytest.fixture
def zoo(guest):
    """One fd of each kind, by name."""
    reader, writer = os.pipe()
    one, other = socket.socketpair()
    small = os.memfd_create("small")
    another_uffd = open_userfaultfd()
    fds = {
        "uffd": guest.uffd,
        "memfd": guest.memfd,
        "pidfd": os.pidfd_open(os.getpid()),
        "pipe": reader,
        "socket": one.fileno(),
        "directory": os.open("/", os.O_RDONLY),
        "another uffd": another_uffd,
        "small memfd": small,
    }
    yield fds
    for fd in (writer, reader, small, another_uffd, fds["pidfd"], fds["directory"]):
        os.close(fd)
    one.close()
    other.close()


def near_misses(guest):
    """Messages that are nearly right: one field changed."""
    good = {
        "base_host_virt_addr": guest.addr,
        "size": guest.size_bytes,
        "offset": 0,
        "page_size": PAGE_SIZE,
        "memfd": 0,
    }
    wrong = st.sampled_from(
        [
            None,
            True,
            -1,
            1,
            4096,
            4097,
            guest.addr,
            guest.size_bytes * 2,
            1 << 63,
            (1 << 64) - 4096,
            1 << 70,
            "",
            [],
        ]
    )
    region = st.builds(lambda key, value: good | {key: value}, st.sampled_from(list(good)), wrong)
    regions = st.lists(st.just(good) | region, max_size=4)
    return st.builds(
        lambda kind, regions, more: {"vmmswap": 1, "type": kind, "regions": regions} | more,
        st.sampled_from(
            ["register", "register", "add-process", "add-region", "remove-region", "attach", "?"]
        ),
        regions,
        st.dictionaries(st.sampled_from(["dummy_page", "pins", "qmp", "vmmswap", "type"]), wrong, max_size=2),
    )


async def hand_off(pieces):
    """Send (bytes, fds) pieces to a session of its own; return its replies and what the handler got."""
    ours, theirs = socket.socketpair()
    ancillary.prepare(ours)
    handler = RecordingHandler()
    with theirs:
        for data, fds in pieces:
            send(theirs, data, fds)
        theirs.shutdown(socket.SHUT_WR)
        session = HandoffSession(ours, handler, Claim(), Limits(silence_s=1, message_s=1))
        await session.run()
        return await replies(theirs), handler


def test_thousands_of_malformed_hand_offs(guest, zoo):
    loop = asyncio.new_event_loop()
    junk = st.binary(max_size=40)
    counts = {"refused": 0, "accepted": 0}

    @settings(max_examples=2000, deadline=None)
    @given(
        message=near_misses(guest),
        kinds=st.just(["uffd", "memfd"]) | st.lists(st.sampled_from(FD_KINDS), max_size=6),
        cut=st.integers(0, 400),
        damage=st.none() | st.tuples(st.integers(0, 400), junk),
        tail=st.just(b"\n") | junk,
        late_fds=st.lists(st.sampled_from(FD_KINDS), max_size=2),
        as_array=st.booleans(),
    )
    def check(message, kinds, cut, damage, tail, late_fds, as_array):  # noqa: PLR0917
        body = json.dumps(message["regions"] if as_array else message).encode()
        if damage is not None:
            at, other = damage
            body = body[:at] + other + body[at + len(other) :]
        data = body + tail
        pieces = [(data[:cut], [zoo[kind] for kind in kinds]), (data[cut:], [zoo[kind] for kind in late_fds])]
        before = open_fds()
        got, handler = loop.run_until_complete(hand_off([piece for piece in pieces if piece[0]]))
        assert open_fds() == before
        assert len(got) <= 2
        if handler.requests:
            counts["accepted"] += 1
        elif data:
            counts["refused"] += 1
            (reply,) = got
            assert reply["type"] == "error"
            assert reply["error"].startswith("org.vmmswap.Error.")
            assert not reply["error"].endswith(".Internal")
            assert reply["message"]

    try:
        check()
        # The fuzzer must have got past the parser now and then, and been refused nearly always.
        assert counts["refused"] > 1000
        got, handler = loop.run_until_complete(
            hand_off([(encode("register", [guest.region]), [guest.uffd, guest.memfd])])
        )
        assert got == [{"type": "ready", "name": "web"}]
        assert handler.lost.get_nowait() is None
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
