# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap/outbox.py and what is sent with it: nobody is waited for, and what is dropped is counted."""

import asyncio
import contextlib
import logging
import os
import socket
import threading
from pathlib import Path

import pytest

from vmmswap import log, outbox
from vmmswap.notify import Notifier
from vmmswap.outbox import DatagramOutbox, StreamOutbox

DEADLINE_S = 60.0


@pytest.fixture
def receiver(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.settimeout(DEADLINE_S)
        yield sock


@pytest.fixture
def address(tmp_path):
    return str(tmp_path / "socket")


@pytest.fixture
def boxes():
    made = contextlib.ExitStack()
    with made:
        yield lambda box: made.enter_context(contextlib.closing(box))


def fill(box, data=b"filler", **options):
    """Until a message waits; how many were sent before."""
    sent = 0
    while not box.send(data, **options).is_waiting:
        sent += 1
    return sent


def read(receiver, count):
    return [receiver.recv(1 << 20) for _ in range(count)]


def drain(receiver, box):
    found = []
    receiver.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            box.flush(0)
            found.append(receiver.recv(1 << 20))
    receiver.settimeout(DEADLINE_S)
    return found


async def until(condition):
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def test_what_waits_is_sent_in_order_when_there_is_room(receiver, address, boxes):
    box = boxes(DatagramOutbox(address, None))
    box.start()
    sent = fill(box)
    for number in range(20):
        assert box.send(b"%d" % number).is_waiting
    assert await asyncio.to_thread(read, receiver, sent + 1 + 20) == [
        *[b"filler"] * (sent + 1),
        *(b"%d" % number for number in range(20)),
    ]
    await until(lambda: not box.waiting)
    assert box.dropped == 0


async def test_beyond_its_bound_messages_are_dropped_and_counted(receiver, address, boxes):
    box = boxes(DatagramOutbox(address, 10_000))
    sent = fill(box)
    for _ in range(100):
        box.send(b"x" * 500)
    assert 0 < box.waiting < 20
    assert box.dropped + box.waiting == 101
    receiver.recv(100)
    assert box.send(b"last").is_waiting, "it does not overtake the others"
    assert sent > 0


async def test_of_how_things_are_now_only_the_latest_waits(receiver, address, boxes):
    box = boxes(DatagramOutbox(address, None))
    sent = fill(box)
    for number in range(10):
        box.send(b"STATUS=%d" % number, latest="STATUS")
        box.send(b"WATCHDOG=1", latest="WATCHDOG")
    assert box.waiting == 3
    box.start()
    assert (await asyncio.to_thread(read, receiver, sent + 3))[-2:] == [b"STATUS=9", b"WATCHDOG=1"]


async def test_fds_of_a_message_that_waits_are_its_own_and_closed_in_the_end(receiver, address, boxes):
    box = boxes(DatagramOutbox(address, None))
    sent = fill(box)
    reader, writer = os.pipe()
    was_sent = threading.Event()
    message = box.send(b"fd", [writer], on_sent=was_sent.set)
    os.close(writer)
    cancelled = box.send(b"none", [reader])
    assert box.cancel(cancelled)
    assert not box.cancel(cancelled)
    box.start()
    await asyncio.to_thread(read, receiver, sent + 1)
    data, fds, _, _ = socket.recv_fds(receiver, 100, 1)
    await until(was_sent.is_set)
    assert (data, len(fds), message.fds, cancelled.fds) == (b"fd", 1, [], [])
    os.close(fds[0])
    assert os.read(reader, 1) == b"", "no other end is open"
    os.close(reader)


async def test_somebody_who_was_not_there_gets_it_when_he_is(address, boxes, monkeypatch):
    monkeypatch.setattr(outbox, "_RETRY_S", 0.01)
    box = boxes(DatagramOutbox(address, None))
    box.start()
    assert box.send(b"hello").is_waiting
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as first:
        first.bind(address)
        first.settimeout(DEADLINE_S)
        assert await asyncio.to_thread(read, first, 1) == [b"hello"]
    Path(address).unlink()
    assert box.send(b"again").is_waiting
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as second:
        second.bind(address)
        second.settimeout(DEADLINE_S)
        assert await asyncio.to_thread(read, second, 1) == [b"again"]


def test_the_journal_gets_a_large_entry_as_a_memfd(receiver, address, boxes, monkeypatch):
    monkeypatch.setattr(log, "_JOURNAL", address)
    boxes(log.JournalOutbox()).put({"MESSAGE": "x" * (1 << 20), "TWO_LINES": "a\nb"})
    data, fds, _, _ = socket.recv_fds(receiver, 100, 1)
    assert data == b""
    with os.fdopen(fds[0], "rb") as entry:
        assert entry.seek(0) == 0
        assert (
            entry.read() == b"MESSAGE=" + b"x" * (1 << 20) + b"\nTWO_LINES\n" + b"\x03" + bytes(7) + b"a\nb\n"
        )


def test_the_log_says_how_much_of_it_is_missing(receiver, address, boxes, monkeypatch):
    monkeypatch.setattr(log, "_JOURNAL", address)
    handler = boxes(log.JournalHandler("test", "web"))

    def say(text):
        handler.emit(logging.LogRecord("test", logging.INFO, "", 0, text, (), None))

    while not handler.outbox.dropped:
        say("filler" * 100)
    say("dropped, too")
    drain(receiver, handler.outbox)
    say("after")
    entries = drain(receiver, handler.outbox)
    assert entries[-2].startswith(b"MESSAGE=2 log messages were dropped: nobody took them\nPRIORITY=4\n")
    assert entries[-1].startswith(b"MESSAGE=after\nPRIORITY=6\nSYSLOG_IDENTIFIER=test\nVMMSWAP_VM=web\n")
    say("no more is said of it")
    assert receiver.recv(1000).startswith(b"MESSAGE=no more")


async def test_a_pipe_that_nobody_reads_and_nobody_reads_any_more(boxes):
    reader, writer = os.pipe()
    box = boxes(StreamOutbox(writer, 100_000))
    box.start()
    lines = [b"%05d" % number + b"x" * 995 + b"\n" for number in range(1000)]
    for line in lines:
        box.send(line)
    assert 0 < box.waiting < 100 < box.dropped
    there = b""
    kept = len(lines) - box.dropped
    while len(there) < kept * 1001:
        there += await asyncio.to_thread(os.read, reader, 1 << 16)
    assert there == b"".join(lines[:kept])
    os.close(reader)
    dropped = box.dropped
    assert not box.send(b"nobody").is_waiting
    assert box.dropped == dropped + 1
    os.close(writer)


def test_without_a_service_manager_nothing_is_sent(boxes, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not boxes(Notifier()).notify("READY=1").is_waiting
