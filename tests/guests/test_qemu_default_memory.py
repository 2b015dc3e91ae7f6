# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU with its default memory, which is private and anonymous, sandboxed as libvirt does it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.guests import qemu
from tests.guests.attached import MIB, check_guest, enabled
from tests.guests.qemu import Qemu
from tests.guests.test_qemu import wait_balloon
from tests.guests.test_qemu_hotplug import until
from tests.support.bus import missing as bus_missing
from tests.support.patience import PATIENCE
from tests.support.restarts import failing

REASON = qemu.missing() or bus_missing() or qemu.cannot_move()
pytestmark = [
    pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing"),
    pytest.mark.slow,
]

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs")
MEMORY_MIB = 384
PLUGGED_MIB = 256
PAGES_PER_MIB = 256


def threads(vm):
    return sorted((task / "comm").read_text() for task in Path(f"/proc/{vm.pid}/task").iterdir())


def killed_in_a_swap_out(service, point):
    """A monitor dies there; its successor."""
    service.monitor.kill()
    monitor = service.start(env=failing(f"{point}=kill@3"))
    subprocess.run(monitor.call_command("Enable"), check=False, capture_output=True)
    monitor.process.wait(120 * PATIENCE)
    return service.start()


def test_as_it_comes(service, directory):
    """Everything with one guest, because it takes long to boot."""
    home = directory / "qemu"
    home.mkdir()
    shutil.chown(home, 65534, 65534)
    more = ("-sandbox", SANDBOX, "-m", "slots=1,maxmem=1G", "-device", "VGA,vgamem_mb=16")
    with Qemu(home, *more, memory_mib=MEMORY_MIB, accel="tcg", prefix=AS_NOBODY, default_memory=True) as vm:
        vm.order("fill 96")
        vm.order("scribble on")
        fds, shared, own = vm.fds, vm.shared_mappings, threads(vm)
        service.attach(vm.pid, qmp=str(vm.qmp_path))
        monitor = service.monitor
        assert "vga.vram', which is no RAM of the guest" in monitor.log  # and TotalPages is without it
        monitor.until(lambda: threads(vm) == sorted([*own, "vmmswap\n"]), "the thread to begin")
        before = vm.resident_bytes()
        status = enabled(monitor)
        assert (status["PinCheck"], status["TotalPages"]) == ("move", MEMORY_MIB * PAGES_PER_MIB)
        check_guest(vm)
        vm.qmp("stop")  # or it brings back what it touched before
        status = enabled(monitor)
        assert vm.resident_bytes() < before / 4, (status, monitor.log)
        vm.qmp("cont")
        check_guest(vm)

        enabled(monitor)
        vm.qmp("balloon", value=vm.memory_bytes - 64 * MIB)
        wait_balloon(vm, vm.memory_bytes - 64 * MIB)
        enabled(monitor)
        vm.qmp("balloon", value=vm.memory_bytes)
        wait_balloon(vm, vm.memory_bytes)
        check_guest(vm)

        enabled(monitor)
        monitor.kill()
        vm.send("check")
        service.start()
        assert vm.answer("check").wrong == 0
        for point in ("move.moved", "move.out"):
            monitor = killed_in_a_swap_out(service, point)
            check_guest(vm)
            assert monitor.settled()["State"] == "Active", monitor.log

        plug_and_unplug(vm, monitor)

        enabled(monitor)
        service.detach()
        assert (vm.fds, vm.shared_mappings, threads(vm)) == (fds, shared, own)
        check_guest(vm)

        service.start()
        service.attach(vm.pid)
        save_and_load(vm, service.monitor, home / "snapshots")
        enabled(service.monitor)
        vm.send("off")
        assert vm.wait_off() == 0
        assert service.monitor.wait_exit() == 0
        assert "the VMM has ended: all is freed" in service.monitor.log


def save_and_load(vm, monitor, image):
    """QEMU's savevm and loadvm, while memory is out: one reads all of it, the other one writes it."""
    image.touch()
    shutil.chown(image, 65534, 65534)
    vm.qmp("blockdev-add", **{"node-name": "file"}, driver="file", filename=str(image))
    job(vm, "blockdev-create", options={"driver": "qcow2", "file": "file", "size": MIB})
    vm.qmp("blockdev-add", **{"node-name": "qcow2"}, driver="qcow2", file="file")
    for command in ("snapshot-save", "snapshot-load"):
        enabled(monitor)
        job(vm, command, tag="one", vmstate="qcow2", devices=["qcow2"])
        check_guest(vm)


def job(vm, command, **arguments):
    """Until QEMU is done with it."""
    vm.qmp(command, **{"job-id": "job"}, **arguments)
    until(lambda: job_of(vm)["status"] == "concluded", f"QEMU is not done with {command}")
    assert "error" not in job_of(vm), job_of(vm)
    vm.qmp("job-dismiss", id="job")


def job_of(vm):
    [found] = vm.qmp("query-jobs")
    return found


def plug_and_unplug(vm, monitor):
    before_kib = vm.order("memory").total_kib
    vm.qmp("object-add", **{"qom-type": "memory-backend-ram"}, id="more", size=PLUGGED_MIB * MIB)
    vm.qmp("device_add", driver="pc-dimm", id="dimm", memdev="more")
    until(
        lambda: vm.order("memory").total_kib > before_kib + PLUGGED_MIB * 900,
        "the guest has no more memory",
    )
    vm.order("fill 340")  # more than it had
    vm.order("scribble on")
    status = enabled(monitor)
    assert status["TotalPages"] == (MEMORY_MIB + PLUGGED_MIB) * PAGES_PER_MIB
    check_guest(vm)
    vm.order("empty")
    enabled(monitor)
    vm.qmp("device_del", id="dimm")
    until(lambda: not vm.qmp("query-memory-devices"), "the guest does not let its memory go")
    vm.qmp("object-del", id="more")
    vm.order("fill 64")
    vm.order("scribble on")
    monitor.until(lambda: enabled(monitor)["TotalPages"] == MEMORY_MIB * PAGES_PER_MIB, "it to be released")
    check_guest(vm)
