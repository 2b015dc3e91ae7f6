# SPDX-License-Identifier: GPL-2.0-or-later
"""What frees much memory, or waits for a disk, is closed beside the event loop: memory first."""

import asyncio
import os
import threading
import time

from vmmswap.engine import Engine, EngineConfig, Range
from vmmswap.linux import closing
from vmmswap.monitor.keep.fdstore import FdStore
from vmmswap.monitor.keep.manifest import Manifest, ManifestFile
from vmmswap.monitor.operations.counting import Counting
from vmmswap.monitor.operations.housekeeping import Housekeeping
from vmmswap.monitor.pulse import Pulse
from vmmswap.monitor.snapshot import Resident
from vmmswap.monitor.vm import Vm

DEADLINE_S = 60.0
LARGE_BYTES = 65 << 20


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def memfd_of(size_bytes):
    memfd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.posix_fallocate(memfd, 0, size_bytes)
    return memfd


async def until(condition):
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def test_the_loop_goes_on_while_a_vm_is_closed(tmp_path):
    engine = Engine(EngineConfig(tmp_path, fault_threads=1, workers=1))
    vm = Vm(engine, Manifest(), ManifestFile(), FdStore(None))
    memfd = vm.memfds[0] = memfd_of(4096)
    with engine._keeping_house:  # as if the disk hung in the middle of it
        task = asyncio.create_task(vm.close())
        await until(lambda: not is_open(memfd))
        assert not task.done()
    async with asyncio.timeout(DEADLINE_S):
        await task
    assert not is_open(vm.file.fd)


def test_a_large_file_is_closed_by_somebody_else():
    goes_on = threading.Event()
    closing._closer().submit(goes_on.wait, DEADLINE_S)
    small, large = memfd_of(4096), memfd_of(LARGE_BYTES)
    closing.close(small)
    closing.close(large)
    assert (is_open(small), is_open(large)) == (False, True)
    goes_on.set()
    end_s = time.monotonic() + DEADLINE_S
    while is_open(large):
        assert time.monotonic() < end_s
        time.sleep(0.001)


async def test_whoever_asks_gets_a_count_that_began_after_that(tmp_path):
    engine = Engine(EngineConfig(tmp_path, fault_threads=1, workers=1))
    memfd = memfd_of(1 << 20)
    engine.add_region(memfd, 0, 1 << 19)
    counting, vm = Counting(), Vm(engine, Manifest(), ManifestFile(), FdStore(None))
    with engine._counting:  # one runs
        first = asyncio.create_task(counting.refresh(vm))
        await until(lambda: counting._task is not None)
        os.truncate(memfd, 0)
        os.truncate(memfd, 1 << 20)
        others = [asyncio.create_task(counting.refresh(vm)) for _ in range(3)]
        await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(first, *others)
    assert engine.stats().resident_pages == 0
    assert counting._counted == counting._asked == 4
    engine.close()
    await counting.refresh(vm)
    vm.file.close()
    os.close(memfd)


async def test_a_snapshots_vm_is_walked_over_once_on_a_thread(tmp_path, monkeypatch):
    """Until then its resident pages are those of the whole process, and never more than it has memory."""
    goes_on, walked = threading.Event(), []

    def walk(pid, _ranges):
        assert goes_on.wait(DEADLINE_S)
        walked.append((pid, threading.current_thread() is threading.main_thread()))
        return 4

    monkeypatch.setattr("vmmswap.monitor.snapshot._anonymous_kib", lambda _pid: 40)
    monkeypatch.setattr("vmmswap.monitor.snapshot._anonymous_kib_of", walk)
    engine = Engine(EngineConfig(tmp_path, fault_threads=1, workers=1))
    counting, vm = Counting(), Vm(engine, Manifest(), ManifestFile(), FdStore(None))
    vm.resident = Resident(1, (Range(0x10000, 0, 8),))
    asking = [asyncio.create_task(counting.refresh(vm)) for _ in range(2)]
    await until(lambda: counting._task is not None)
    assert vm.stats().resident_pages == 8
    goes_on.set()
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*asking)
    await counting.refresh(vm)
    assert vm.stats().resident_pages == 1
    assert set(walked) == {(1, False)}
    vm.free()


async def test_housekeeping_that_waits_for_the_disk_holds_up_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("vmmswap.monitor.pulse.FIRST_S", 0.001)
    engine = Engine(EngineConfig(tmp_path, fault_threads=1, workers=1))
    asked = threading.Event()

    def idle_engine():
        asked.set()
        return engine

    housekeeping = Housekeeping(idle_engine, Pulse(engine))
    with engine._keeping_house:
        housekeeping.start()
        await until(asked.is_set)
        assert engine.stats().swap_pages == 0
    housekeeping.stop()
    await asyncio.to_thread(engine.close)
