# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory that a VMM has locked into RAM is not taken, whichever way the VM comes."""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import mmap
import os

import pytest

from tests.support.attach import Target
from tests.support.bus import missing
from tests.support.handed_over import HandedOver
from tests.support.handoff import GuestMemory, Mapper, RecordingHandler, register, serving
from tests.support.monitor import Monitor
from vmmswap.attach.attach import attach_vm
from vmmswap.errors import NotSupportedError
from vmmswap.handoff.client import Region, VmmClient

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

SIZE = 4 << 20
LOCKED = "has locked guest memory into RAM .* munlock"
libc = ctypes.CDLL(None, use_errno=True)


def test_attach_changes_nothing():
    with Target("memory,nanosleep", "locked") as target:
        target.run_on(1)
        fds, maps = target.fds, target.maps
        with pytest.raises(NotSupportedError, match=LOCKED):
            attach_vm(target.pidfd)
        assert (target.fds, target.maps) == (fds, maps)


async def test_a_hand_off_is_refused():
    handler = RecordingHandler()
    with GuestMemory() as guest:
        assert libc.mlock(ctypes.c_void_p(guest.addr), mmap.PAGESIZE) == 0
        async with serving(handler) as connect:
            with VmmClient(connect()) as client, pytest.raises(NotSupportedError, match=LOCKED):
                await asyncio.to_thread(client.register, [guest.region], [guest.memfd], guest.uffd)
        assert libc.munlock(ctypes.c_void_p(guest.addr), mmap.PAGESIZE) == 0
        async with serving(handler) as connect:
            client, _ = await register(connect, guest)
            client.close()
    assert len(handler.requests) == 1


async def test_what_else_is_locked_does_not_matter():
    """A VMM that locks its own data, not its guest's."""
    with mmap.mmap(-1, mmap.PAGESIZE) as own, GuestMemory() as guest:
        view = ctypes.c_char.from_buffer(own)
        addr = ctypes.c_void_p(ctypes.addressof(view))
        assert libc.mlock(addr, mmap.PAGESIZE) == 0
        async with serving(RecordingHandler()) as connect:
            client, _ = await register(connect, guest)
            client.close()
        assert libc.munlock(addr, mmap.PAGESIZE) == 0
        del view


async def test_a_process_that_is_added_is_refused():
    with GuestMemory() as guest:
        async with serving(RecordingHandler()) as connect:
            client, _ = await register(connect, guest)
            with client, await asyncio.to_thread(Mapper, guest.memfd, guest.size_bytes, "lock") as other:
                region = Region(other.addr, guest.size_bytes, 0, 0)
                with pytest.raises(NotSupportedError, match=LOCKED):
                    await asyncio.to_thread(
                        client.add_process, [region], other.uffd, other.pidfd, dummy_page=other.dummy_page
                    )


def test_locked_later_enable_is_refused_until_it_is_not(bus, directory):
    memory = os.memfd_create("guest", os.MFD_CLOEXEC)
    content = os.urandom(SIZE)
    os.ftruncate(memory, SIZE)
    os.pwrite(memory, content, 0)
    with Monitor("web", bus, directory) as monitor, HandedOver(monitor.socket, memory) as vmm:
        monitor.all_out()
        vmm.lock("mlock")  # while it is out: it comes back, as for any access
        assert os.fstat(memory).st_blocks * 512 == SIZE
        assert monitor.error_of("Enable") == "NotSupported"
        assert os.fstat(memory).st_blocks * 512 == SIZE
        vmm.lock("munlock")
        monitor.all_out()
        assert os.fstat(memory).st_blocks == 0
        assert vmm.digest() == hashlib.sha256(content).hexdigest()
    os.close(memory)
