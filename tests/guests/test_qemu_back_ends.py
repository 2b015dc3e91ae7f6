# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU whose devices are processes of their own that map the guest's memory: vhost-user.

Both are Debian's, as they are: virtiofsd in its sandbox (a forked child in namespaces of its own, with a
seccomp filter that kills), and qemu-storage-daemon with a disk. Their files are on slow disks, so that they
have transfers into guest memory under way at any time.
"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.guests import qemu
from tests.guests.attached import UFFD, enabled, wait_blocks
from tests.guests.blocks import is_stored, write_blocks, wrong_blocks
from tests.guests.qemu import Qemu
from tests.support import slow_disk
from tests.support.bus import missing as bus_missing
from tests.support.monitor import BusError
from tests.support.slow_disk import SlowDisk
from vmmswap.errors import NotSupportedError

VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
REASON = qemu.missing() or bus_missing() or slow_disk.missing()
if not REASON and not VIRTIOFSD.exists():
    REASON = f"needs {VIRTIOFSD}"
pytestmark = [
    pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing"),
    pytest.mark.slow,
]

DELAY_MS = 100
DISK_MIB = 16
DEADLINE_S = 60.0


@contextmanager
def running(command, log, ready):
    """A back-end that listens at the path `ready`."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    end = time.monotonic() + DEADLINE_S
    try:
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, f"{command[0]} does not listen: {log.read_text()}"
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()


def virtiofsd(directory, prefix=()):
    """Serves `directory`/share."""
    command = [*prefix, str(VIRTIOFSD), f"--socket-path={directory}/fs.sock", "--thread-pool-size=4"]
    command += ["-o", f"source={directory}/share,allow_direct_io"]
    return running(command, directory / "virtiofsd.log", directory / "fs.sock")


def storage_daemon(directory, file):
    command = ["qemu-storage-daemon", "--blockdev"]
    command += [f"driver=file,node-name=disk,filename={file},cache.direct=on,aio=native", "--export"]
    command += ["type=vhost-user-blk,id=blk,node-name=disk,writable=on,addr.type=unix"]
    command[-1] += f",addr.path={directory}/blk.sock"
    return running(command, directory / "storage-daemon.log", directory / "blk.sock")


def share_device(directory, more=""):
    return (
        *("-chardev", f"socket,id=share,path={directory}/fs.sock{more}"),
        *("-device", "vhost-user-fs-pci,chardev=share,tag=share"),
    )


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Guest:
    """QEMU, and who else maps the guest's memory."""

    def __init__(self, vm, back_ends, files):
        self.vm, self.back_ends, self.files = vm, back_ends, files

    @property
    def pids(self):
        return [self.vm.pid, *self.back_ends]

    def traces(self):
        """What of ours is in the processes."""
        found = []
        for pid in self.pids:
            fds = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
            maps = Path(f"/proc/{pid}/maps").read_text()
            found += [pid] * (fds.count(UFFD) + maps.count("/dev/zero (deleted)"))
        return found


@pytest.fixture(scope="module")
def guest(bus):  # noqa: ARG001  (the bus fixture has prepared the kernel)
    with tempfile.TemporaryDirectory(prefix="vmmswap-") as path, ExitStack() as stack:
        directory = Path(path)
        (directory / "share").mkdir()
        files = [directory / "blk", directory / "share" / "disk"]
        for file in files:
            write_blocks(file, DISK_MIB)
        slow = [stack.enter_context(SlowDisk(file, DELAY_MS)) for file in files]
        storage = stack.enter_context(storage_daemon(directory, slow[0].path))
        # In there its share has the slow file.
        share = stack.enter_context(virtiofsd(directory, ("nsenter", f"--mount=/proc/{slow[1].pid}/ns/mnt")))
        blk = ("-chardev", f"socket,id=blk,path={directory}/blk.sock")
        blk += ("-device", "vhost-user-blk-pci,chardev=blk,num-queues=1")
        vm = stack.enter_context(Qemu(directory, *share_device(directory), *blk, memory_mib=384))
        assert vm.order("share").wrong == 0
        tagged = vm.order(f"tagged {DISK_MIB}")
        assert (tagged.disks, tagged.wrong) == (2, 0)
        vm.order("fill 64")
        (sandboxed,) = children(share.pid)
        yield Guest(vm, [sandboxed, storage.pid], files)


@pytest.fixture
def attached(service, guest):
    """Past virtiofsd's filter; detached afterwards, and nothing is left."""
    service.attach(guest.vm.pid, force=True)
    yield service
    service.detach()
    assert guest.traces() == []
    assert guest.vm.order("check").wrong == 0


def test_the_filter_of_virtiofsd_is_named(service, guest):
    with pytest.raises(NotSupportedError, match=r"virtiofsd\) would kill the process at .*option force"):
        service.attach(guest.vm.pid)
    assert guest.traces() == []


def test_all_processes_are_served_across_rounds(attached, guest):
    before = guest.vm.resident_bytes()
    guest.vm.order("disk on")
    for turn in range(5):
        status = enabled(attached.monitor)
        assert status["Processes"] == 1 + len(guest.back_ends), attached.monitor.log
        wait_blocks(attached.monitor, guest.vm)
        if turn % 2:
            attached.monitor.disable()
    done = guest.vm.order("disk off")
    assert (done.wrong, done.least > 0) == (0, True), done
    enabled(attached.monitor)
    assert guest.vm.resident_bytes() < before / 4
    assert guest.vm.order("check").wrong == 0
    assert [wrong_blocks(file) for file in guest.files] == [[], []]


def test_a_back_end_meets_what_is_out_by_itself(attached, guest):
    """Transfers of memory that nobody else touches meanwhile, from it and then to it."""
    for order in ("store", "load"):
        enabled(attached.monitor)
        faults = faults_at(attached.monitor, lambda order=order: guest.vm.order(order))
        for pid in guest.back_ends:
            assert any(is_guest_memory(pid, addr) for uffd, addr in faults if uffd > 0), (order, pid)
    assert guest.vm.order("check").wrong == 0
    assert [is_stored(file) for file in guest.files] == [True, True]


def faults_at(monitor, work):
    """Pairs of the userfaultfd's number (0: QEMU's) and the address, of the page faults meanwhile."""
    monitor.call("StartPageFaultLogging")
    assert work().wrong == 0
    monitor.call("StopPageFaultLogging")
    lines = (monitor.directory / "page_fault.log").read_text().splitlines()
    faults = [json.loads(line) for line in lines[1:]]
    return [(fault["id_uffd"], fault["address"]) for fault in faults]


def is_guest_memory(pid, addr):
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if "memfd:memory-backend-memfd" in line]
    return any(int(start, 16) <= addr < int(end, 16) for start, end in spans)


def test_the_monitor_is_killed_with_transfers_under_way(attached, guest):
    enabled(attached.monitor)
    guest.vm.order("disk on")
    attached.monitor.kill()
    monitor = attached.start()
    wait_blocks(monitor, guest.vm)
    assert enabled(monitor)["Restarts"] == 1
    wait_blocks(monitor, guest.vm)
    assert guest.vm.order("disk off").wrong == 0
    assert [wrong_blocks(file) for file in guest.files] == [[], []]


# --- QEMUs that stand at their first instruction


@pytest.fixture
def disks(directory):
    """Two, in back-ends of their own: the sockets."""
    with ExitStack() as stack:
        sockets = []
        for name in ("first", "second"):
            home = directory / name
            home.mkdir()
            write_blocks(home / "file", 1)
            stack.enter_context(storage_daemon(home, home / "file"))
            sockets.append(home / "blk.sock")
        yield sockets


@contextmanager
def standing(directory, *options):
    command = ["qemu-system-x86_64", "-S", "-accel", "tcg", "-m", "256M", "-machine", "pc,memory-backend=mem"]
    command += [
        "-object",
        "memory-backend-memfd,id=mem,size=256M,share=on",
        "-nodefaults",
        "-display",
        "none",
    ]
    for name in ("qmp", "other"):  # QEMU talks to one client at a time on each
        command += ["-qmp", f"unix:{directory}/{name}.sock,server=on,wait=off"]
    with running([*command, *options], directory / "qemu.log", directory / "other.sock") as process:
        qemu.wait_set_up(directory / "other.sock")
        yield process


def go_out(monitor):
    """There is hardly anything yet that could."""
    assert monitor.enable()["State"] == "Active", monitor.log


def test_one_that_may_connect_again_is_named(service, directory, disks):
    device = ("-chardev", f"socket,id=blk,path={disks[0]},reconnect=1")
    device += ("-device", "vhost-user-blk-pci,chardev=blk")
    with standing(directory, *device) as process:
        with pytest.raises(NotSupportedError, match=r"connect again \(chardev blk\)"):
            service.attach(process.pid)
        service.attach(process.pid, force=True)
        go_out(service.monitor)
        service.detach()


def test_one_that_is_added_while_it_runs(service, directory, disks):
    """Whether it may connect again is known of character devices of the command line only."""

    def order(command, **arguments):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"{directory}/other.sock")
            qemu.qmp(sock, command, **arguments)

    with standing(directory, "-chardev", f"socket,id=known,path={disks[0]}") as process:
        service.attach(process.pid, qmp=f"{directory}/qmp.sock")
        go_out(service.monitor)
        order("device_add", driver="vhost-user-blk-pci", id="d0", chardev="known")
        go_out(service.monitor)
        addr = {"type": "unix", "data": {"path": str(disks[1])}}
        backend = {"type": "socket", "data": {"addr": addr, "server": False, "reconnect": 1}}
        order("chardev-add", id="again", backend=backend)
        go_out(service.monitor)
        order("device_add", driver="vhost-user-blk-pci", id="d1", chardev="again")
        with pytest.raises(BusError, match=r"given a vhost-user back-end while it ran \(chardev again\)"):
            service.monitor.call("Enable")
        assert service.monitor.status()["State"] == "Active"
        service.detach()
        service.start()
        service.attach(process.pid, qmp=f"{directory}/qmp.sock", force=True)
        go_out(service.monitor)
        service.detach()
