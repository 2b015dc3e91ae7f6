# SPDX-License-Identifier: GPL-2.0-or-later
"""Two QEMUs share guest memory: the guest moves from one to the other while its memory is out.

That is QEMU's own way to replace itself: both have the memory's file, and with x-ignore-shared only the
devices and processors migrate. The guest itself says whether each word of its memory is right.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guests import qemu
from tests.guests.attached import MIB, Service, check_guest, enabled
from tests.guests.qemu import Qemu
from tests.support.bus import missing as bus_missing
from tests.support.patience import PATIENCE

REASON = qemu.missing() or bus_missing()
pytestmark = [
    pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing"),
    pytest.mark.slow,
]

MEMORY_MIB = 256
FILLED_MIB = 64
DEADLINE_S = 120.0 * PATIENCE


@contextmanager
def memory_of(pid: int | None = None) -> Iterator[int]:
    """An fd of guest memory: a new memfd, or the one that this QEMU has."""
    if pid is None:
        fd = os.memfd_create("guest", 0)
        os.ftruncate(fd, MEMORY_MIB * MIB)
    else:
        files = Path(f"/proc/{pid}/fd").iterdir()
        fd = os.open(next(file for file in files if "memfd:guest" in str(file.readlink())), os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def source(directory: Path) -> Iterator[Qemu]:
    with memory_of() as fd:
        vm = Qemu(directory, memory_mib=MEMORY_MIB, memory_fd=fd)
        vm.__enter__()
    try:
        vm.order(f"fill {FILLED_MIB}")
        vm.order("scribble on")
        yield vm
    finally:
        vm.__exit__(None, None, None)


@contextmanager
def second_qemu(source: Qemu) -> Iterator[Qemu]:
    """It waits for the guest to come."""
    home = source.directory / "second"
    home.mkdir()
    with memory_of(source.pid) as fd:
        vm = Qemu(home, "-incoming", "defer", memory_mib=MEMORY_MIB, memory_fd=fd, wait_ready=False)
        vm.__enter__()
        qemu.wait_set_up(vm.qmp_path)
    try:
        yield vm
    finally:
        vm.__exit__(None, None, None)


def migrate(source: Qemu, target: Qemu) -> None:
    """Stopped: a running guest's migration under tcg is not reliable, without us either."""
    uri = f"unix:{source.directory}/migration"
    for vm in (source, target):
        vm.qmp("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])
    target.qmp("migrate-incoming", uri=uri)
    source.qmp("stop")
    source.qmp("migrate", uri=uri)
    end_s = time.monotonic() + DEADLINE_S
    while (status := source.qmp("query-migrate")["status"]) != "completed":
        assert status in ("setup", "active", "device"), status
        assert time.monotonic() < end_s, status
        time.sleep(0.05)


def taken_over(service: Service, source: Qemu, target: Qemu) -> None:
    """The source quits, and the guest runs on in the target."""
    source.process.kill()
    source.process.wait()
    service.monitor.wait_log(f"process {target.pid} (qemu-system-x86) is the VM's VMM from now on")
    status = service.monitor.status()
    assert (status["State"], status["Pid"], status["Processes"]) == ("Active", target.pid, 1)
    target.qmp("cont")
    check_guest(target)
    assert service.monitor.status()["LostPages"] == 0


def test_a_second_qemu_takes_the_guest_over_while_its_memory_is_out(service: Service, source: Qemu) -> None:
    service.attach(source.pid)
    with second_qemu(source) as target:
        assert enabled(service.monitor)["Processes"] == 2
        migrate(source, target)
        enabled(service.monitor)
        taken_over(service, source, target)
        enabled(service.monitor)
        check_guest(target)
        service.detach()
        check_guest(target)


def test_the_second_qemu_comes_while_memory_is_out_and_the_monitor_is_killed(
    service: Service, source: Qemu
) -> None:
    """It is served as soon as it is seen; before the guest comes it touches none of its memory."""
    service.attach(source.pid)
    enabled(service.monitor)
    with second_qemu(source) as target:
        monitor = service.monitor
        monitor.until(lambda: monitor.status()["Processes"] == 2, "the second QEMU to be attached to")
        service.monitor.kill()
        service.start()
        migrate(source, target)
        enabled(service.monitor)
        service.monitor.kill()
        source.process.kill()
        source.process.wait()
        service.start()
        taken_over(service, source, target)
