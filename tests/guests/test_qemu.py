# SPDX-License-Identifier: GPL-2.0-or-later
"""An unmodified QEMU with an unmodified distribution kernel, attached to while it runs.

One guest serves most tests, each of which attaches anew. The guest itself says whether its memory is right.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.guests import qemu
from tests.guests.attached import MIB, UFFD, check_guest, enabled
from tests.guests.qemu import Qemu
from tests.support.bus import missing as bus_missing
from tests.support.monitor import Monitor
from vmmswap.errors import NotSupportedError

REASON = qemu.missing() or bus_missing()
pytestmark = [
    pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing"),
    pytest.mark.slow,
]

FILLED_MIB = 128


@pytest.fixture(scope="module")
def vm(bus, record_testsuite_property):  # noqa: ARG001  (the bus fixture has prepared the kernel)
    accel, why = qemu.accelerator()
    record_testsuite_property("accelerator", f"{accel}: {why}")
    print(f"QEMU runs with {accel}: {why}")
    with tempfile.TemporaryDirectory(prefix="vmmswap-") as path, Qemu(Path(path)) as running:
        running.order(f"fill {FILLED_MIB}")
        running.order("scribble on")
        yield running


@pytest.fixture
def attached(service, vm):
    """The monitor of the shared guest; detached afterwards, and the guest looked at once more."""
    fds = vm.fds
    assert service.attach(vm.pid) == "web"
    yield service
    if service.monitor.process.poll() is None:
        service.detach()
    check_guest(vm)
    assert vm.fds == fds


def test_three_rounds_and_out_without_a_trace(bus, directory, vm):
    """vmmswap-monitor NAME --attach PID, without a service manager."""
    fds, shared = vm.fds, vm.shared_mappings
    with Monitor("web", bus, directory, "--attach", str(vm.pid), listen=False) as monitor:
        assert "taken: shared, writable and large" in monitor.log
        assert sorted([*fds, UFFD]) == vm.fds
        before = vm.resident_bytes()
        assert before > FILLED_MIB * MIB
        for _ in range(3):
            status = enabled(monitor)
            assert vm.resident_bytes() < before / 4, (status, monitor.log)
            assert vm.order("check").wrong == 0
            assert vm.order("replay").wrong == 0
            vm.order("scribble on")
            now = monitor.status()  # from the second round on, a replay brings most of them back
            assert now["CopiedPages"] + now["PrefetchedPages"] > FILLED_MIB * MIB / 4096 * 0.9
        enabled(monitor)
        vm.order("memory")  # a little work while all is out
        assert monitor.disable()["State"] == "Ready"
        monitor.call("Detach")
        assert monitor.wait_exit() == 0
    assert vm.fds == fds
    assert vm.shared_mappings == shared
    check_guest(vm)


def test_the_guest_is_not_stopped_for_long(attached, vm):
    vm.order("ticks")
    status = enabled(attached.monitor)
    print("longest stop that the guest saw:", vm.order("ticks").longest_us, "us; PauseUs", status["PauseUs"])
    assert vm.order("check").wrong == 0


def test_turned_round_again_and_again(attached, vm):
    for _ in range(4):
        attached.monitor.call("Enable")
        attached.monitor.call("Disable")
    assert attached.monitor.settled()["State"] == "Ready"
    for _ in range(3):
        attached.monitor.call("Enable")
        vm.order("memory")
        attached.monitor.call("Disable")
        attached.monitor.call("Enable")
    assert attached.monitor.settled()["State"] == "Active"


def test_balloon(attached, vm):
    """Inflated while memory is out: what the guest gave up is neither brought back nor kept."""
    enabled(attached.monitor)
    vm.qmp("balloon", value=vm.memory_bytes - 160 * MIB)
    wait_balloon(vm, vm.memory_bytes - 160 * MIB)
    assert vm.order("check").wrong == 0
    enabled(attached.monitor)
    vm.qmp("balloon", value=vm.memory_bytes)
    wait_balloon(vm, vm.memory_bytes)
    check_guest(vm)
    enabled(attached.monitor)
    check_guest(vm)


def wait_balloon(vm, wanted):
    wait_qmp(vm, "query-balloon", lambda found: found["actual"] == wanted)


def wait_qmp(vm, command, condition):
    end = time.monotonic() + 120
    while not condition(found := vm.qmp(command)):
        assert time.monotonic() < end, found
        time.sleep(0.05)


def test_free_page_reporting(attached, vm):
    """The guest frees memory whose contents are out, and fills it anew."""
    enabled(attached.monitor)
    out = attached.monitor.status()["SwapPages"]
    vm.order("empty")
    end = time.monotonic() + 120  # reporting comes some seconds later
    while attached.monitor.status()["SwapPages"] > out - 64 * 256:
        assert time.monotonic() < end, "the guest's free pages are still stored"
        time.sleep(0.1)
    vm.order(f"fill {FILLED_MIB}")
    check_guest(vm)
    enabled(attached.monitor)
    check_guest(vm)


def test_the_monitor_is_killed_meanwhile(attached, vm):
    """With memory out, and in the middle of a swap-out: the guest waits for the successor, no more."""
    enabled(attached.monitor)
    attached.monitor.kill()
    vm.send("check")
    attached.start()
    assert vm.answer("check").wrong == 0
    assert attached.monitor.status()["Restarts"] == 1
    attached.monitor.call("Enable")
    attached.monitor.kill()
    monitor = attached.start()
    assert monitor.settled()["State"] == "Active"
    check_guest(vm)


def test_a_snapshot_while_memory_is_out(attached, vm, directory):
    """QEMU forks to write it, and reads all of guest memory; another QEMU goes on from there.

    The guest is stopped meanwhile: under tcg QEMU 7.2 misses pages that change while it copies them,
    without us too (seen: two of four snapshots of a running guest did not come to life again).
    """
    enabled(attached.monitor)
    snapshot = directory / "snapshot"
    vm.qmp("stop")
    vm.qmp("migrate", uri=f"exec:cat > {snapshot}")
    wait_qmp(vm, "query-migrate", lambda found: found["status"] == "completed")
    vm.qmp("cont")
    check_guest(vm)
    second = directory / "second"
    second.mkdir()
    with Qemu(second, "-incoming", f"exec:cat {snapshot}", wait_ready=False) as copy:
        wait_qmp(copy, "query-status", lambda found: found["status"] == "paused")
        copy.qmp("cont")
        assert copy.order("check").wrong == 0
        assert copy.order("replay").wrong == 0


# --- QEMUs of their own


def test_as_nobody_in_its_sandbox(service, directory):
    home = directory / "qemu"
    home.mkdir()
    shutil.chown(home, 65534, 65534)
    sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    prefix = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs")
    with Qemu(home, "-sandbox", sandbox, memory_mib=384, accel="tcg", prefix=prefix) as vm:
        vm.order("fill 96")
        vm.order("scribble on")
        fds = vm.fds
        service.attach(vm.pid)
        before = vm.resident_bytes()
        enabled(service.monitor)
        assert vm.resident_bytes() < before / 4
        check_guest(vm)
        enabled(service.monitor)
        service.detach()
        assert vm.fds == fds
        check_guest(vm)


def test_powered_off_with_memory_out(service, directory):
    with Qemu(directory, memory_mib=256) as vm:
        vm.order("fill 64")
        service.attach(vm.pid)
        enabled(service.monitor)
        vm.send("off")
        assert vm.wait_off() == 0
        assert service.monitor.wait_exit() == 0
        assert "the VMM has ended" in service.monitor.log


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("memory-backend-ram,id=mem,size=8M", "no guest memory.*share=on"),
        ("memory-backend-memfd,id=mem,size=256M,share=off", "mapped privately.*memory-backend-memfd"),
    ],
)
def test_memory_of_the_wrong_kind(service, directory, backend, reason):
    command = ["qemu-system-x86_64", "-S", "-accel", "tcg", "-object", backend]
    command += ["-m", re.search("size=(\\w+)", backend)[1]]
    command += ["-machine", "pc,memory-backend=mem", "-nodefaults", "-display", "none"]
    command += ["-qmp", f"unix:{directory}/qmp.sock,server=on,wait=off"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            service.monitor.until((directory / "qmp.sock").exists, "QEMU to listen")
            qemu.wait_set_up(directory / "qmp.sock")
            with pytest.raises(NotSupportedError, match=reason):
                service.attach(process.pid)
            assert process.poll() is None
        finally:
            process.kill()
