# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM that has asked for EVENT_REMAP and EVENT_UNMAP itself, and moves and unmaps guest memory."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest

from tests.support.bus import missing
from tests.support.notify import ServiceManager
from tests.support.restarts import Restarted
from vmmswap.handoff import client
from vmmswap.handoff.client import Region, VmmClient
from vmmswap.linux import userfaultfd
from vmmswap.linux.userfaultfd import WANTED, Feature

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

PAGES = 64
SIZE = PAGES * mmap.PAGESIZE

_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAYMOVE, _FIXED = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = _libc.mremap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Memory:
    """A memfd full of random bytes, mapped here, by system calls that wait without the GIL."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        self.copy = os.urandom(SIZE)
        os.write(self.fd, self.copy)
        self.addr = _libc.mmap(None, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, self.fd, 0)
        self.size = SIZE

    def move(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        place = _libc.mmap(None, self.size, _PROT_NONE, flags, -1, 0)
        assert _libc.mremap(self.addr, self.size, self.size, _MAYMOVE | _FIXED, place) == place
        self.addr = place

    def squat_second_half(self) -> int:
        """Private memory in its place, and no guest memory; its address."""
        self.size //= 2
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
        addr = self.addr + self.size
        assert _libc.mmap(addr, self.size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == addr
        return addr

    def check(self) -> None:
        assert ctypes.string_at(self.addr, self.size) == self.copy[: self.size]

    def close(self) -> None:
        _libc.munmap(self.addr, SIZE)
        os.close(self.fd)


@pytest.fixture
def service(bus, directory):
    with ServiceManager(directory) as manager:
        running = Restarted(bus, directory, manager)
        running.start().wait_on_bus()
        yield running
        running.close()


@pytest.fixture
def memory(service):
    """Of this process, which is the VMM, registered."""
    memory, dummy = Memory(), client.DummyPage()
    uffd = client.open_userfaultfd()
    userfaultfd.api(uffd, WANTED | Feature.EVENT_REMAP | Feature.EVENT_UNMAP)
    with VmmClient.connect(service.monitor.socket) as vmm:
        vmm.register([Region(memory.addr, SIZE, 0, 0)], [memory.fd], uffd, dummy_page=dummy.addr)
        yield memory
        service.monitor.call("Disable")
        service.monitor.settled()
    os.close(uffd)
    memory.close()
    dummy.close()


def successor_of(service):
    service.monitor.kill()
    monitor = service.start()
    monitor.wait_on_bus()
    return monitor


def test_a_successor_knows_where_memory_was_moved(service, memory):
    assert service.monitor.all_out()["SwapPages"] == PAGES
    memory.move()
    assert service.monitor.all_out()["SwapPages"] == PAGES  # who maps it was looked at: the move is known
    monitor = successor_of(service)
    memory.check()
    memory.move()
    assert monitor.all_out()["SwapPages"] == PAGES
    memory.check()


def test_a_successor_knows_what_was_unmapped(service, memory):
    assert service.monitor.all_out()["SwapPages"] == PAGES
    squatted = memory.squat_second_half()
    assert service.monitor.all_out()["SwapPages"] == PAGES
    monitor = successor_of(service)
    memory.check()
    assert monitor.all_out()["SwapPages"] == PAGES
    monitor.call("Disable")
    assert monitor.settled()["SwapPages"] == 0
    memory.check()
    assert ctypes.string_at(squatted, SIZE // 2) == bytes(SIZE // 2)
    assert "cannot register guest memory" not in monitor.log
