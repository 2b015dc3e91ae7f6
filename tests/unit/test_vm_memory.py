# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest memory that a monitor holds."""

import asyncio
import os

import pytest

from vmmswap.engine import Engine, EngineConfig
from vmmswap.errors import NoSuchVMError
from vmmswap.handoff.region import Region
from vmmswap.monitor.keep.fdstore import FdStore
from vmmswap.monitor.keep.manifest import Manifest, ManifestFile
from vmmswap.monitor.vm import Vm

SIZE_BYTES = 1 << 20


@pytest.fixture
def vm(tmp_path):
    engine = Engine(EngineConfig(tmp_path, fault_threads=1, workers=1))
    made = Vm(engine, Manifest(), ManifestFile(), FdStore(None))
    yield made
    made.free()


@pytest.fixture
def memfd():
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE_BYTES)
    yield fd
    os.close(fd)


def test_the_position_of_a_memfd_stays_the_vmms(vm, memfd):
    vm.add_memfds([memfd])
    os.lseek(vm.memfds[0], 4096, os.SEEK_SET)  # as who looks for data does
    assert os.lseek(memfd, 0, os.SEEK_CUR) == 0


DEADLINE_S = 60.0
ALL = Region(0x7F0000000000, SIZE_BYTES, 0, 0)


async def begin_unplug(vm, memfd):
    """As if the memory were so large that it takes for as long as the lock is held."""
    vm.add_memfds([memfd])
    vm.add_regions([ALL], mapped_by=None)
    task = asyncio.create_task(vm.remove_regions([ALL]))
    for _ in range(10):
        await asyncio.sleep(0)
    return task


async def test_the_loop_goes_on_while_memory_is_unplugged(vm, memfd):
    with vm.engine._walking:
        task = await begin_unplug(vm, memfd)
        await asyncio.sleep(0.001)
        assert not task.done()
        assert vm.engine.stats().total_pages == SIZE_BYTES >> 12
    async with asyncio.timeout(DEADLINE_S):
        await task
    assert vm.engine.stats().total_pages == 0
    assert (vm.manifest.regions, vm.memfds) == ((), {})


async def test_an_unplug_whose_caller_has_gone_is_finished(vm, memfd):
    with vm.engine._walking:
        task = await begin_unplug(vm, memfd)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with asyncio.timeout(DEADLINE_S):
        while vm.manifest.regions:
            await asyncio.sleep(0.001)
    assert vm.engine.stats().total_pages == 0


async def test_a_vm_that_ends_while_its_memory_is_unplugged(vm, memfd):
    with vm.engine._walking:
        task = await begin_unplug(vm, memfd)
        vm.retire()
    with pytest.raises(NoSuchVMError):
        await task
