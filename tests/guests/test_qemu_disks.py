# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks without a host cache, whose transfers are under way in guest memory while that is swapped out.

On a slow disk there is always such a transfer. Who does not look for them loses what they bring, and nobody
gets an error: the last test shows that this guest would notice.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.guests import qemu
from tests.guests.attached import enabled, wait_blocks
from tests.guests.blocks import write_blocks, wrong_blocks
from tests.guests.qemu import Qemu
from tests.support import slow_disk
from tests.support.bus import missing as bus_missing
from tests.support.slow_disk import SlowDisk

REASON = qemu.missing() or bus_missing() or slow_disk.missing()
pytestmark = [
    pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing"),
    pytest.mark.slow,
]

DELAY_MS = 300  # about as long as a swap-out
DISK_MIB = 16
ROUNDS_TO_LOSE = 10
SLOW_AIO = ("native", "io_uring", "threads")


def drive(path, aio):
    return ("-drive", f"file={path},format=raw,if=virtio,cache=none,aio={aio}")


@pytest.fixture(scope="module")
def disks():
    with tempfile.TemporaryDirectory(prefix="vmmswap-") as path:
        files = [Path(path) / name for name in (*SLOW_AIO, "fast")]
        for file in files:
            write_blocks(file, DISK_MIB)
        yield files


@contextmanager
def running(disks, *, default_memory=False):
    """With a slow disk for each of QEMU's ways to use one, and a fast one on the host's own file system."""
    options = []
    with tempfile.TemporaryDirectory(prefix="vmmswap-") as path, ExitStack() as stack:
        for file, aio in zip(disks, SLOW_AIO, strict=False):
            options += drive(stack.enter_context(SlowDisk(file, DELAY_MS)).path, aio)
        options += drive(disks[-1], "native")
        vm = stack.enter_context(Qemu(Path(path), *options, memory_mib=384, default_memory=default_memory))
        vm.order("fill 64")
        tagged = vm.order(f"tagged {DISK_MIB}")
        assert (tagged.disks, tagged.wrong) == (len(disks), 0)
        yield vm


@pytest.fixture(scope="module")
def vm(bus, disks):  # noqa: ARG001  (the bus fixture has prepared the kernel)
    with running(disks) as vm:
        yield vm


def out_and_in(service, vm, disks, rounds):
    """Swapped out twice in each round, with transfers under way; the last status."""
    service.attach(vm.pid)
    pinned = 0
    vm.order("disk on")
    for _ in range(rounds):
        for _ in range(2):
            status = enabled(service.monitor)
            pinned += status["PinnedPages"]
            wait_blocks(service.monitor, vm)
        service.monitor.disable()
    done = vm.order("disk off")
    print("pages that were left for transfers under way:", pinned)
    assert (done.wrong, done.least > 0, pinned > 0) == (0, True, True), (done, pinned)
    assert vm.order("check").wrong == 0
    service.detach()
    assert [wrong_blocks(file) for file in disks] == [[], [], [], []]
    return status


def test_nothing_is_lost_of_private_memory(service, disks):
    """The kernel does not move what a transfer has pinned. First: the other guest has these disks too."""
    if reason := qemu.cannot_move():
        pytest.skip(reason)
    with running(disks, default_memory=True) as vm:
        assert out_and_in(service, vm, disks, 1)["PinCheck"] == "move"


def test_nothing_is_lost_across_rounds(service, vm, disks):
    out_and_in(service, vm, disks, 3)


def test_without_the_check_it_is_lost(service, directory, vm):
    config = directory / "config"
    config.write_text("[Swap]\nPinCheck=off\n")
    service.monitor.kill()
    monitor = service.start("--config", str(config))
    service.attach(vm.pid)
    for _ in range(ROUNDS_TO_LOSE):  # on a busy machine a swap-out may take longer than a transfer
        vm.order("disk on")
        assert enabled(monitor)["PinCheck"] == "none"
        done = vm.order("disk off")
        if done.wrong:
            break
    print("blocks that were lost:", done.wrong)
    assert done.wrong > 0
    service.detach()
