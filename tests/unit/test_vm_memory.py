# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest memory that a monitor holds."""

import os

import pytest

from vmmswap.engine import Engine, EngineConfig
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
