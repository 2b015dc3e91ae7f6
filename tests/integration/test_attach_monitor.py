# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor attaches, by --attach and by the message, swaps, looks after late mappers, detaches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.attach import NOBODY, Target
from tests.support.bus import missing
from tests.support.monitor import BusError, Monitor
from vmmswap.errors import BusyError, InvalidRegionError, NotSupportedError
from vmmswap.handoff.client import VmmClient

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

UFFD = "anon_inode:[userfaultfd]"
MAPPER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(fd, 16 << 20, flags=eval(sys.argv[2]))
print("mapped", flush=True)
path = sys.stdin.readline().strip()
device = open(path) if path else None
print(sum(memory[offset] for offset in range(0, 16 << 20, 4096)) > 0, flush=True)
sys.stdin.readline()
"""


def attach(monitor, pid, **options):
    pidfd = os.pidfd_open(pid)
    try:
        with VmmClient.connect(str(monitor.socket)) as client:
            return client.attach(pidfd, **options)
    finally:
        os.close(pidfd)


def attached(bus, directory, target, *options):
    return Monitor("web", bus, directory, "--attach", str(target.pid), *options, listen=False)


class Mapper:
    """A process that maps a target's memory."""

    def __init__(self, target, flags="mmap.MAP_SHARED"):
        path = next(
            path for path in Path(f"/proc/{target.pid}/fd").iterdir() if "memfd:guest" in str(path.readlink())
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAPPER, str(path), flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.pid = self.process.pid
        assert self.process.stdout.readline() == b"mapped\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def read_all(self, device=""):
        """All of the memory, once it has opened a device."""
        self.process.stdin.write(f"{device}\n".encode())
        self.process.stdin.flush()
        return self.process.stdout.readline() == b"True\n"


@pytest.mark.parametrize("prefix", [(), NOBODY])
def test_swapped_out_and_in_while_it_works(bus, directory, prefix):
    with Target("memory,nanosleep,read", prefix=prefix) as target:
        target.run_on(1)
        fds, maps = target.fds, target.maps
        with attached(bus, directory, target) as monitor:
            assert sorted([*fds, UFFD]) == target.fds
            for _ in range(3):
                assert monitor.enable()["State"] == "Active", monitor.log
                target.run_on(20)
            assert monitor.disable()["State"] == "Ready"
            target.run_on()
            assert monitor.enable()["State"] == "Active"
            monitor.call("Detach")
            assert monitor.wait_exit() == 0
        assert (target.fds, target.maps, target.wrong) == (fds, maps, 0)
        target.run_on(20)
        assert target.wrong == 0


def test_told_by_the_message_and_stopped(bus, directory):
    with Target("memory,nanosleep") as target, Monitor("web", bus, directory) as monitor:
        fds = target.fds
        assert attach(monitor, target.pid) == "web"
        with pytest.raises(BusyError):
            attach(monitor, target.pid)
        assert monitor.enable()["State"] == "Active"
        target.run_on()
        monitor.process.terminate()
        assert monitor.wait_exit() == 0
        assert (target.fds, target.wrong) == (fds, 0)


def test_a_refusal_leaves_the_monitor_waiting(bus, directory):
    with Target("nanosleep", "anonymous") as target, Monitor("web", bus, directory) as monitor:
        with pytest.raises(NotSupportedError, match="share=on"):
            attach(monitor, target.pid)
        with Target("memory") as other:
            with pytest.raises(InvalidRegionError, match="region"):
                attach(monitor, other.pid, regions=["1000-2000"])
            assert attach(monitor, other.pid) == "web"


def test_refused_from_the_command_line(bus, directory):
    with Target("nanosleep", "private") as target:
        monitor = attached(bus, directory, target)
        monitor.start()
        assert monitor.wait_exit() != 0
        assert "vmmswap-monitor: process" in monitor.log
        assert "Traceback" not in monitor.log
    for pid in ("4194305", "0", "-5"):
        monitor = Monitor("web", bus, directory, f"--attach={pid}", listen=False)
        monitor.start()
        assert monitor.wait_exit() != 0
        assert f"cannot attach to pid {pid}" in monitor.log


def test_who_cannot_be_on_the_bus_leaves_the_vmm_as_it_was(bus, directory):
    with Target("memory,nanosleep") as target:
        target.run_on(1)
        fds, maps = target.fds, target.maps
        monitor = attached(bus, directory, target, "--bus", f"unix:path={directory}/nowhere")
        monitor.start()
        assert monitor.wait_exit() == 69
        assert "registered: process" in monitor.log
        assert (target.fds, target.maps) == (fds, maps)
        target.run_on(20)
        assert target.wrong == 0
        with attached(bus, directory, target) as another:
            assert another.enable()["State"] == "Active"
            another.call("Detach")
            assert another.wait_exit() == 0


def test_a_monitor_is_no_vmm(bus, directory):
    with Target("memory") as target, attached(bus, directory, target) as monitor:
        (keeper,) = children_of(monitor.pid)
        reasons = {
            monitor.pid: "vmmswap's own: this process is a monitor, not a VMM",
            keeper: "no guest memory that can be taken over",
        }
        for pid, reason in reasons.items():
            place = directory / str(pid)
            place.mkdir()
            other = Monitor("other", bus, place, f"--attach={pid}", listen=False)
            other.start()
            assert other.wait_exit() == 69
            assert reason in other.log
        assert monitor.enable()["State"] == "Active"
        target.run_on(20)
        assert target.wrong == 0


def children_of(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_options_of_attach_without_attach(bus, directory):
    for option in (("--region", "1000-2000"), ("--force",), ("--qmp", "/x")):
        monitor = Monitor("web", bus, directory, *option)
        monitor.start()
        assert monitor.wait_exit() == 2
        assert "go with --attach" in monitor.log


def test_a_region_by_hand(bus, directory):
    with Target("memory", size_mib=32) as target:
        region = f"{target.addr:x}-{target.addr + (16 << 20):x}"
        with attached(bus, directory, target, "--region", region) as monitor:
            assert monitor.enable()["TotalPages"] == 4096
            target.run_on(100)
            monitor.call("Detach")
            assert monitor.wait_exit() == 0
            assert target.wrong == 0


def test_who_maps_the_memory_later_is_attached_before_enable(bus, directory):
    with Target("memory,nanosleep") as target, attached(bus, directory, target) as monitor:
        with Mapper(target) as mapper:
            status = monitor.enable()
            assert (status["State"], status["Processes"]) == ("Active", 2), monitor.log
            assert mapper.read_all()
            target.run_on(100)
            monitor.call("Detach")
            assert monitor.wait_exit() == 0
            links = [str(path.readlink()) for path in Path(f"/proc/{mapper.pid}/fd").iterdir()]
            assert UFFD not in links
        assert target.wrong == 0


def test_a_device_that_another_mapper_was_given_since(bus, directory, vfio_device):
    with Target("nanosleep") as target, attached(bus, directory, target) as monitor, Mapper(target) as mapper:
        assert monitor.enable()["State"] == "Active"
        assert monitor.status()["Processes"] == 2
        assert monitor.disable()["State"] == "Ready"
        assert mapper.read_all(vfio_device)
        with pytest.raises(
            BusError, match=rf"{mapper.pid} .* has {vfio_device} open.*pins all of its memory"
        ):
            monitor.call("Enable")


def test_who_maps_the_memory_too_late_is_reported_and_attached(bus, directory):
    with Target("nanosleep") as target, attached(bus, directory, target) as monitor:
        assert monitor.enable()["State"] == "Active"
        with Mapper(target) as mapper:
            monitor.wait_log(f"process {mapper.pid}")
            monitor.until(lambda: monitor.status()["Processes"] == 2, "the late mapper to be attached")
            assert "has mapped guest memory while it is swapped out" in monitor.log
            assert mapper.read_all()


def test_who_maps_the_memory_privately_too_late_has_all_of_it_brought_back(bus, directory):
    with Target("nanosleep") as target, attached(bus, directory, target) as monitor:
        assert monitor.enable()["State"] == "Active"
        with Mapper(target, "mmap.MAP_PRIVATE") as mapper:
            monitor.until(lambda: monitor.status()["State"] == "Failed", "the refusal")
            assert f"process {mapper.pid} " in monitor.status()["Error"]
            assert mapper.read_all()
            with pytest.raises(BusError, match=rf"{mapper.pid} .*privately"):
                monitor.call("Enable")
        assert monitor.enable()["State"] == "Active"


def test_a_target_that_ends(bus, directory):
    with Target("memory") as target, attached(bus, directory, target) as monitor:
        assert monitor.enable()["State"] == "Active"
        target.process.kill()
        assert monitor.wait_exit() == 0
        assert "the VMM has ended" in monitor.log
