# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM hands memory over bit by bit, also to a process that it added before: add-process once more, with the
same userfaultfd or another one. The real monitor, a VMM in Python, and a process that shares its memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import os
import socket
from pathlib import Path

import pytest

from tests.support.bus import missing
from tests.support.guest_memory import map_guest_memory
from tests.support.monitor import PROGRAM, BusError, Monitor
from tests.support.notify import ServiceManager
from tests.support.restarts import Restarted, failing, memfds_of
from tests.support.sharing_process import SharingProcess
from vmmswap.errors import InvalidRegionError, ProtocolError
from vmmswap.handoff import client
from vmmswap.handoff.client import Region, VmmClient
from vmmswap.linux import userfaultfd

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

SIZE = 64 * mmap.PAGESIZE


@pytest.fixture
def monitor(bus, directory):
    with Monitor("web", bus, directory) as running:
        yield running


class Memory:
    """A memfd full of random bytes, mapped here."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.fd = os.memfd_create(f"guest{number}", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, SIZE)
        self.map = map_guest_memory(self.fd, SIZE)
        self.map[:] = os.urandom(SIZE)
        self.copy = self.map[:]
        self._view = ctypes.c_char.from_buffer(self.map)

    def region(self, memfd: int) -> Region:
        return Region(ctypes.addressof(self._view), SIZE, 0, memfd)

    def close(self) -> None:
        del self._view
        self.map.close()
        os.close(self.fd)


class Vmm:
    """This process as a VMM with two memfds. It hands over the first, which another process maps too."""

    def __init__(self, path: str | Path) -> None:
        self.memory = [Memory(0), Memory(1)]
        self.uffd = client.open_userfaultfd()
        self.dummy = client.DummyPage()
        self.client = VmmClient.connect(path)
        self.client.register(
            [self.memory[0].region(0)], [self.memory[0].fd], self.uffd, dummy_page=self.dummy.addr
        )
        self.other = SharingProcess()
        self.first = self.other.userfaultfd()
        self.map_and_add(0, self.first)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.other.__exit__(None, None, None)
        self.client.close()
        for fd in (self.uffd, self.first[0]):
            os.close(fd)
        for memory in self.memory:
            memory.close()
        self.dummy.close()

    def map(self, number: int) -> Region:
        """The other process maps a memfd."""
        return Region(self.other.map(self.memory[number].fd, SIZE), SIZE, 0, number)

    def add(self, region: Region, uffd_and_dummy: tuple[int, int]) -> None:
        uffd, dummy_page = uffd_and_dummy
        self.client.add_process([region], uffd, self.other.pidfd, dummy_page=dummy_page)

    def map_and_add(self, number: int, uffd_and_dummy: tuple[int, int]) -> None:
        self.add(self.map(number), uffd_and_dummy)

    def add_region(self) -> None:
        self.client.add_region([self.memory[1].region(0)], [self.memory[1].fd])

    def is_out(self) -> bool:
        return all(os.fstat(memory.fd).st_blocks == 0 for memory in self.memory)

    @property
    def digest(self) -> str:
        return hashlib.sha256(b"".join(memory.copy for memory in self.memory)).hexdigest()

    def check(self) -> None:
        """Both processes read what was there."""
        assert self.other.digest() == self.digest
        assert [memory.map[:] for memory in self.memory] == [memory.copy for memory in self.memory]


@pytest.fixture
def vmm(monitor):
    with Vmm(monitor.socket) as running:
        yield running
    with contextlib.suppress(BusError):  # it ends by itself, unless it has refused a message
        monitor.call("Exit")
    assert monitor.wait_exit() == 0  # killed with a VM, which this process is, it would have a successor


@pytest.fixture(params=["the same userfaultfd", "another one"])
def further(request, vmm):
    """The userfaultfd that further memory comes with, and its dummy page."""
    yield from further_of(vmm, request.param)


def further_of(vmm, which):
    if which == "the same userfaultfd":
        yield vmm.first
    else:
        made = vmm.other.userfaultfd()
        yield made
        os.close(made[0])


def test_further_memory_of_a_process_that_is_known(monitor, vmm, further):
    """Until it is told of, Enable is refused: the process would read zeros."""
    vmm.add_region()
    region = vmm.map(1)
    with pytest.raises(BusError, match=f"process {vmm.other.pid} .*{region.addr:#x} without a userfaultfd"):
        monitor.call("Enable")
    vmm.add(region, further)
    for _ in range(2):
        assert monitor.all_out()["SwapPages"] == 128
        assert vmm.is_out()
        vmm.check()
    assert monitor.disable()["State"] == "Ready"
    vmm.check()
    assert "no guest memory" not in monitor.log


def test_further_memory_while_all_is_out(monitor, vmm, further):
    assert monitor.enable()["State"] == "Active"
    vmm.add_region()
    vmm.map_and_add(1, further)
    vmm.check()
    assert monitor.all_out()["SwapPages"] == 128
    vmm.check()
    assert "no guest memory" not in monitor.log


def test_a_child_of_a_process_with_two_userfaultfds(monitor, vmm, further):
    """The kernel tells of it once for each, and it is one process all the same."""
    vmm.add_region()
    vmm.map_and_add(1, further)
    assert monitor.enable()["State"] == "Active"
    child = vmm.other.fork()
    monitor.wait_log(f"process {child} ")
    assert monitor.enable()["State"] == "Active"
    assert vmm.other.child_digest() == vmm.digest
    assert monitor.enable()["State"] == "Active"
    vmm.check()


@pytest.mark.parametrize("which", ["the same userfaultfd", "another one"])
def test_a_successor_knows_both(bus, directory, which):
    with ServiceManager(directory) as manager, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
        listener.listen()

        def start():
            program, fds = manager.program(*PROGRAM, listener=listener)
            monitor = Monitor(
                "web",
                bus,
                directory,
                program=program,
                env=manager.environment,
                listen=False,
                pass_fds=fds,
            )
            monitor.start()
            monitor.wait_on_bus()
            return monitor

        monitor = start()
        try:
            with Vmm(directory / "socket") as vmm:
                vmm.add_region()
                made = further_of(vmm, which)
                vmm.map_and_add(1, next(made))
                monitor.all_out()
                monitor.kill()
                monitor = start()
                assert vmm.is_out()
                vmm.check()
                assert monitor.all_out()["SwapPages"] == 128
                vmm.check()
                next(made, None)
        finally:
            monitor.kill()


@pytest.fixture
def service(bus, directory):
    with ServiceManager(directory) as manager:
        running = Restarted(bus, directory, manager)
        yield running
        running.close()


def test_the_numbers_of_memfds_outlive_a_restart(service):
    """Also that of the last one, when its memory is gone."""
    service.start().wait_on_bus()
    with Vmm(service.monitor.socket) as vmm:
        vmm.add_region()
        vmm.client.remove_region([vmm.memory[1].region(1)])
        service.monitor.kill()
        monitor = service.start()
        monitor.wait_on_bus()
        third = Memory(2)
        vmm.memory.append(third)
        vmm.client.add_region([third.region(0)], [third.fd])
        vmm.map_and_add(2, vmm.first)
        assert monitor.all_out()["SwapPages"] == 128
        assert vmm.other.digest() == hashlib.sha256(vmm.memory[0].copy + third.copy).hexdigest()
        monitor.disable()
        assert vmm.memory[1].map[:] == vmm.memory[1].copy


def test_memory_that_is_refused_during_an_operation_is_forgotten(service):
    """With the reason of the refusal, not that an operation is under way."""
    service.start(failing("evict.read=stall")).wait_on_bus()
    with Vmm(service.monitor.socket) as vmm:
        memory = vmm.memory[1]
        uffd = client.open_userfaultfd()
        userfaultfd.api(uffd, userfaultfd.Feature(0))
        userfaultfd.register_missing(uffd, memory.region(0).addr, mmap.PAGESIZE)
        service.monitor.call("Enable")
        service.monitor.until(lambda: service.monitor.status()["Mode"], "guest memory to be registered")
        with pytest.raises(InvalidRegionError, match="another userfaultfd watches it"):
            vmm.add_region()
        status = service.monitor.status()
        assert (status["Operation"], status["TotalPages"]) == ("swap-out", 64)
        assert not memfds_of(service.monitor.pid, "guest1")
        os.close(uffd)
        service.monitor.kill()
        monitor = service.start()
        monitor.wait_on_bus()
        assert monitor.settled()["TotalPages"] == 64
        assert vmm.memory[0].map[:] == vmm.memory[0].copy


# What is refused; each refusal ends the connection, so each needs its own VMM.


def test_memory_that_is_mapped_twice(vmm, further):
    region = vmm.map(0)
    with pytest.raises(InvalidRegionError, match=r"maps this memory already, at .* only one mapping"):
        vmm.add(region, further)


def test_memory_that_is_served_already(vmm, further):
    vmm.add_region()
    region = vmm.map(1)
    vmm.add(region, further)
    half = Region(region.addr, SIZE // 2, 0, 1)
    with pytest.raises(
        InvalidRegionError, match=f"{region.addr:#x}: process {vmm.other.pid} is served there"
    ):
        vmm.client.add_process([half], further[0], vmm.other.pidfd)


def test_the_userfaultfd_of_another_process_that_is_known(vmm):
    region = vmm.map(0)
    with pytest.raises(ProtocolError, match=f"userfaultfd is of process {os.getpid()}.* {vmm.other.pid}"):
        vmm.client.add_process([region], vmm.uffd, vmm.other.pidfd)
