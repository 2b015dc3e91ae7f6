# SPDX-License-Identifier: GPL-2.0-or-later
"""Private memory at the hand-off: what is refused, over real sockets. The VMM is this process."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import mmap
import os

import pytest

from tests.support.handoff import GuestMemory, Mapper, RecordingHandler, open_fds, refused, serving
from vmmswap.errors import NotSupportedError, VmmswapError
from vmmswap.handoff.client import DummyPage, VmmClient, open_userfaultfd
from vmmswap.handoff.messages import encode
from vmmswap.handoff.private import MAILBOX_BYTES, check_kernel
from vmmswap.handoff.region import PAGE_SIZE, Region, private_region

try:
    check_kernel()
    REASON = "" if os.geteuid() == 0 else "needs root, as the monitor does"
except VmmswapError as error:
    REASON = error.message
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

PAGES = 64
DONTFORK, DOFORK = 10, 11
LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(autouse=True)
def no_fd_leaks():
    before = open_fds()
    yield
    assert open_fds() == before


class PrivateGuest:
    """Private memory that no child gets, and what is sent with it. No thread is at the mailbox: nobody asks
    whether there is one before memory is to leave.
    """

    def __init__(self):
        self.map = mmap.mmap(-1, PAGES * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = ctypes.c_char.from_buffer(self.map)
        self.addr = ctypes.addressof(self.view)
        self.advise(DONTFORK)
        self.uffd, self.dummy = open_userfaultfd(), DummyPage()
        self.mailbox = mailbox()
        self.pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def close(self):
        for fd in (self.uffd, self.mailbox, self.pagemap):
            os.close(fd)
        self.dummy.close()
        del self.view
        self.map.close()

    def advise(self, advice):
        address, size = ctypes.c_void_p(self.addr), ctypes.c_size_t(PAGES * PAGE_SIZE)
        assert LIBC.madvise(address, size, advice) == 0

    @property
    def region(self):
        return private_region(self.addr, PAGES * PAGE_SIZE)

    @property
    def message(self):
        return encode("register", [self.region], dummy_page=self.dummy.addr)

    async def refusal(self, *, message=None, mailbox=None, pagemap=None):
        async with serving(RecordingHandler()) as connect:
            sent = [self.uffd, mailbox or self.mailbox, pagemap or self.pagemap]
            return await refused(connect, message or self.message, sent)


def mailbox(size_bytes=MAILBOX_BYTES, seals=fcntl.F_SEAL_SHRINK):
    fd = os.memfd_create("mailbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size_bytes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@pytest.fixture
def guest():
    memory = PrivateGuest()
    yield memory
    memory.close()


async def test_it_is_taken(guest):
    handler = RecordingHandler()
    async with serving(handler) as connect:
        client = VmmClient(connect())
        arguments = {"dummy_page": guest.dummy.addr, "mailbox": guest.mailbox}
        await asyncio.to_thread(client.register, [guest.region], [], guest.uffd, **arguments)
        [request] = handler.requests
        assert (request.memfds, request.memory.is_private, request.process.is_proven) == ((), True, True)
        with Mapper(guest.mailbox, MAILBOX_BYTES) as other, pytest.raises(NotSupportedError, match="alone"):
            await asyncio.to_thread(
                client.add_process, [Region(other.addr, PAGE_SIZE, 0, 0)], other.uffd, other.pidfd
            )
        client.close()


@pytest.mark.parametrize(
    ("size_bytes", "seals"),
    [(MAILBOX_BYTES, fcntl.F_SEAL_GROW), (2 * MAILBOX_BYTES, fcntl.F_SEAL_SHRINK), (0, fcntl.F_SEAL_SHRINK)],
)
async def test_a_mailbox_that_could_shrink_or_has_another_size(guest, size_bytes, seals):
    fd = mailbox(size_bytes, seals)
    assert await guest.refusal(mailbox=fd) == (
        "InvalidRegion",
        "fds[1]: the mailbox is not a memfd of 4096 bytes that is sealed with F_SEAL_SHRINK",
    )
    os.close(fd)


async def test_a_mailbox_that_is_no_memfd(guest):
    assert (await guest.refusal(mailbox=guest.uffd))[0] == "InvalidRegion"


async def test_a_pagemap_that_is_none(guest, tmp_path):
    (tmp_path / "pagemap").touch()
    for path in (tmp_path / "pagemap", "/proc/self/maps"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        kind, message = await guest.refusal(pagemap=fd)
        assert (kind, message.partition(":")[0]) == ("InvalidRegion", "fds[2]")
        os.close(fd)


async def test_memory_that_children_get(guest):
    guest.advise(DOFORK)
    kind, message = await guest.refusal()
    assert kind == "NotSupported"
    assert "MADV_DONTFORK" in message


async def test_memory_that_is_locked(guest):
    assert LIBC.mlock(ctypes.c_void_p(guest.addr), ctypes.c_size_t(PAGE_SIZE)) == 0
    kind, message = await guest.refusal()
    assert kind == "NotSupported"
    assert "locked guest memory into RAM" in message


async def test_shared_memory_is_not_private(guest):
    with GuestMemory() as shared:
        region = private_region(shared.addr, shared.size_bytes)
        kind, message = await guest.refusal(message=encode("register", [region]))
    assert kind == "InvalidRegion"
    assert "not private anonymous memory: shared memory is handed over by its memfd" in message


async def test_memory_that_is_not_there(guest):
    region = private_region(guest.addr, 1 << 40)
    assert (await guest.refusal(message=encode("register", [region])))[0] == "InvalidRegion"


async def test_read_only_memory(guest):
    assert LIBC.mprotect(ctypes.c_void_p(guest.addr), ctypes.c_size_t(PAGE_SIZE), mmap.PROT_READ) == 0
    kind, message = await guest.refusal()
    assert LIBC.mprotect(ctypes.c_void_p(guest.addr), ctypes.c_size_t(PAGE_SIZE), 3) == 0
    assert kind == "InvalidRegion"
    assert "is not readable and writable" in message
