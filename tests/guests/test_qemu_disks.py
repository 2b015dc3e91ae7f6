# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks without a host cache, whose transfers are under way in guest memory while that is swapped out.

On a slow disk there is always such a transfer. Who does not look for them loses what they bring, and nobody
gets an error: the last test shows that this guest would notice.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
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


@pytest.fixture(scope="module")
def vm(bus, disks):  # noqa: ARG001  (the bus fixture has prepared the kernel)
    """With a slow disk for each of QEMU's ways to use one, and a fast one on the host's own file system."""
    options = []
    with tempfile.TemporaryDirectory(prefix="vmmswap-") as path, ExitStack() as stack:
        for file, aio in zip(disks, SLOW_AIO, strict=False):
            options += drive(stack.enter_context(SlowDisk(file, DELAY_MS)).path, aio)
        options += drive(disks[-1], "native")
        running = stack.enter_context(Qemu(Path(path), *options, memory_mib=384))
        running.order("fill 64")
        tagged = running.order(f"tagged {DISK_MIB}")
        assert (tagged.disks, tagged.wrong) == (len(disks), 0)
        yield running


def test_nothing_is_lost_across_rounds(service, vm, disks):
    service.attach(vm.pid)
    pinned = 0
    vm.order("disk on")
    for _ in range(3):
        for _ in range(2):
            pinned += enabled(service.monitor)["PinnedPages"]
            wait_blocks(service.monitor, vm)
        service.monitor.disable()
    done = vm.order("disk off")
    print("pages that were left for transfers under way:", pinned)
    assert (done.wrong, done.least > 0, pinned > 0) == (0, True, True), (done, pinned)
    assert vm.order("check").wrong == 0
    service.detach()
    assert [wrong_blocks(file) for file in disks] == [[], [], [], []]


def test_without_the_check_it_is_lost(service, directory, vm):
    config = directory / "config"
    config.write_text("[Swap]\nPinCheck=off\n")
    service.monitor.kill()
    monitor = service.start("--config", str(config))
    service.attach(vm.pid)
    vm.order("disk on")
    assert enabled(monitor)["PinCheck"] == "none"
    done = vm.order("disk off")
    print("blocks that were lost:", done.wrong)
    assert done.wrong > 0
    service.detach()
