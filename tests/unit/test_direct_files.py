# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that are read with O_DIRECT where that is not seen by a move of private memory."""

import asyncio
import os
from types import SimpleNamespace

import pytest

from vmmswap.errors import NotSupportedError
from vmmswap.handoff import direct_files
from vmmswap.linux.mounts import read_mounts
from vmmswap.monitor.mappers.private import PrivateWatch


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    return path


def kind_of(path):
    """The file system that is mounted nearest to it."""
    above = [mount for mount in read_mounts() if path.is_relative_to(mount.point)]
    return max(above, key=lambda mount: len(mount.point.parts)).kind


def opened(path, flags):
    try:
        return os.open(path, os.O_RDWR | flags)
    except OSError as error:
        pytest.skip(f"no O_DIRECT in {path.parent}: {error}")


def test_found_while_it_is_open_with_o_direct(file, monkeypatch):
    kind = kind_of(file)
    assert not direct_files.direct_files(os.getpid(), {kind})
    buffered = opened(file, 0)
    direct = opened(file, os.O_DIRECT)
    found = direct_files.direct_files(os.getpid(), {kind})
    assert [item.fd for item in found] == [direct]
    assert not direct_files.direct_files(os.getpid(), {"nfs"} - {kind})

    monkeypatch.setattr(direct_files, "_HOLD_WITHOUT_A_PIN", frozenset({kind}))
    with pytest.raises(NotSupportedError, match=rf"fd {direct} open with O_DIRECT .* on {kind} at /"):
        direct_files.check_direct_files(os.getpid())
    os.close(direct)
    direct_files.check_direct_files(os.getpid())
    os.close(buffered)


def test_a_process_that_has_ended_has_none():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    direct_files.check_direct_files(pid)


def test_other_file_systems_do_no_harm(file):
    direct = opened(file, os.O_DIRECT)
    direct_files.check_direct_files(os.getpid())
    os.close(direct)


def test_enable_of_private_memory_is_refused_meanwhile(file, monkeypatch):
    vm = SimpleNamespace(
        store=SimpleNamespace(keeps=lambda _name: True),
        vmm=SimpleNamespace(pid=os.getpid(), ranges=()),
        mailbox=None,
    )
    watch = PrivateWatch(vm, SimpleNamespace(check_served=lambda: None))
    monkeypatch.setattr(direct_files, "_HOLD_WITHOUT_A_PIN", frozenset({kind_of(file)}))
    direct = opened(file, os.O_DIRECT)
    with pytest.raises(NotSupportedError, match="Use another cache mode, or shared memory"):
        asyncio.run(watch.check_before_enable())
    os.close(direct)
    asyncio.run(watch.check_before_enable())
