# SPDX-License-Identifier: GPL-2.0-or-later
"""A monitor in trouble: a store that cannot be read, memory that does not suffice, VMMs that do harm."""

import contextlib
import hashlib
import os
import resource
import socket
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.support.bus import missing
from tests.support.guest import Guest
from tests.support.handed_over import HandedOver
from tests.support.monitor import BusError, Monitor
from vmmswap.monitor.operations import headroom

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

MIB = 1 << 20


@contextlib.contextmanager
def pair(bus, directory, regions=("16M", "8M"), env=None, group=None, **options):
    """A monitor and a guest that has written all its memory."""
    with contextlib.ExitStack() as undo:
        monitor = undo.enter_context(Monitor("web", bus, directory, env=env))
        guest = undo.enter_context(Guest(regions, socket=monitor.socket, **options))
        if group:
            group.add(guest.pid)
        guest.wait_ready()
        guest.fill()
        yield monitor, guest


# A store that cannot be read


def test_pages_that_cannot_be_read_are_never_zeros_and_keep_the_vm(bus, directory):
    env = {"VMMSWAP_ENGINE": "failpoints", "VMMSWAP_FAILPOINTS": "store.read=EIO"}
    with pair(bus, directory, env=env, mix="random=100") as (monitor, guest):
        monitor.all_out()
        done = guest.touch(5)
        assert (done.bus_errors, done.wrong_bytes) == (1, 0)
        monitor.wait_log("cannot be read back")
        assert monitor.status()["PoisonedPages"] == 1
        assert monitor.error_of("Disable") == "StorageFailed"
        assert monitor.error_of("Exit") == "StorageFailed"
        status = monitor.settled()
        assert status["State"] == "Failed"
        assert "cannot be read back" in status["Error"]
        assert status["SwapPages"] > 0
        assert guest.touch(5).bus_errors == 1
        guest.kill()
        assert monitor.wait_exit() == 0
        assert "Traceback" not in monitor.log


def test_pages_that_cannot_be_taken_are_left_behind_and_reported(bus, directory):
    env = {"VMMSWAP_ENGINE": "failpoints", "VMMSWAP_FAILPOINTS": "memory.punch=once:EIO"}
    with pair(bus, directory, env=env, mix="random=100") as (monitor, guest):
        status = monitor.enable()
        assert (status["State"], status["Error"]) == ("Active", "")
        assert status["LeftPages"] == status["ResidentPages"] > 0
        monitor.wait_log(f"the swap-out leaves {status['LeftPages']} pages on RAM: cannot punch guest memory")
        monitor.wait_log(f"({status['LeftPages']} from address 0x")
        assert guest.verify().wrong_bytes == 0
        assert monitor.enable()["LeftPages"] == 0


def test_a_swap_in_that_meets_unreadable_pages_fails_and_the_vm_is_served(bus, directory):
    env = {"VMMSWAP_ENGINE": "failpoints", "VMMSWAP_FAILPOINTS": "store.read=EIO"}
    with pair(bus, directory, env=env) as (monitor, _guest):
        monitor.enable()
        monitor.call("Exit")
        status = monitor.settled()
        assert status["State"] == "Failed"
        monitor.wait_log("the VM cannot be released")
        assert monitor.process.poll() is None


# Memory that does not suffice


class Group:
    """A memory cgroup of the test's own."""

    def __init__(self):
        found = {item.is_unified: item.point for item in headroom.find_hierarchies()}
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = {fields[1]: fields[2] for line in lines if (fields := line.split(":", 2))}
        name = f"vmmswap-test-{uuid.uuid4().hex[:8]}"
        if False in found:
            self.path = found[False] / own["memory"].lstrip("/") / name
            self.limit_file = "memory.limit_in_bytes"
        else:
            self.path = found[True] / own[""].lstrip("/") / name
            self.limit_file = "memory.max"

    def make(self):
        try:
            self.path.mkdir()
        except OSError as error:
            return f"no memory cgroup can be made: {error}"
        if not (self.path / self.limit_file).exists():
            self.path.rmdir()
            return f"the cgroup has no {self.limit_file}"
        return ""

    def set_limit(self, limit_bytes):
        none = "-1" if self.limit_file == "memory.limit_in_bytes" else "max"
        (self.path / self.limit_file).write_text(none if limit_bytes is None else str(limit_bytes))

    def add(self, pid):
        (self.path / "cgroup.procs").write_text(str(pid))


@pytest.fixture
def group():
    made = Group()
    if reason := made.make():
        pytest.skip(reason)
    yield made
    made.path.rmdir()


def test_a_swap_in_stops_short_of_a_cgroups_limit_and_goes_on_when_there_is_more(bus, directory, group):
    with pair(bus, directory, ("96M",), group=group, mix="random=100") as (monitor, guest):
        out = monitor.enable()["SwapPages"]
        group.set_limit(48 * MIB)
        monitor.call("Disable")
        status = monitor.settled()
        assert status["State"] == "Failed"
        assert "not enough memory" in status["Error"]
        assert str(group.path) in status["Error"]
        assert 0 < status["SwapPages"] < out
        assert guest.touch(0, 100).wrong_bytes == 0
        assert monitor.error_of("Exit") == "NoSpace"
        group.set_limit(None)
        monitor.until(lambda: monitor.status()["State"] == "Ready", "all to be in")
        assert guest.verify().wrong_bytes == 0
        guest.kill()
        assert monitor.wait_exit() == 0


@pytest.fixture
def small_tmpfs(directory):
    """A tmpfs with room for the guest's memory and little else."""
    path = directory / "memory"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10M", "memory", str(path)], check=True)
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_the_tmpfs_of_guest_memory_is_full(bus, directory, small_tmpfs):
    """Something else takes the room that memory has left."""
    content = os.urandom(8 * MIB)
    (small_tmpfs / "guest").write_bytes(content)
    memory = os.open(small_tmpfs / "guest", os.O_RDWR)
    with Monitor("web", bus, directory) as monitor, HandedOver(monitor.socket, memory) as vmm:
        os.close(memory)
        monitor.all_out()
        with (small_tmpfs / "other").open("wb", buffering=0) as other, contextlib.suppress(OSError):
            while other.write(bytes(MIB)):
                pass
        vmm.start_digest()
        monitor.until(lambda: monitor.status()["State"] == "Failed", "the guest to wait")
        status = monitor.status()
        assert status["ErrorName"] == "org.vmmswap.Error.NoSpace"
        full = f"the file system at {small_tmpfs} that holds guest memory is full"
        assert full in status["Error"]
        monitor.call("Disable")
        monitor.until(lambda: "cannot swap all in" in monitor.log, "the swap-in to fail")
        assert full in monitor.settled()["Error"]
        assert monitor.log.count("the guest waits for memory") == 1
        (small_tmpfs / "other").unlink()
        assert vmm.end_digest() == hashlib.sha256(content).hexdigest()
        monitor.wait_log("the guest no longer waits for memory")
        assert monitor.disable()["State"] == "Ready"
        assert monitor.status()["Error"] == ""


def test_a_stop_waits_for_memory(bus, directory, group):
    with pair(bus, directory, ("64M",), group=group, mix="random=100") as (monitor, guest):
        monitor.enable()
        group.set_limit(32 * MIB)
        monitor.process.terminate()
        monitor.wait_log("not enough memory")
        assert guest.touch(0, 100).wrong_bytes == 0
        assert monitor.process.poll() is None
        group.set_limit(None)
        assert monitor.wait_exit() == 0
        assert guest.verify().wrong_bytes == 0
        guest.kill()


# VMMs that do harm: to themselves only


@pytest.mark.parametrize("words", [("nonblock", "off"), ("shrink", 0, 4096), ("munmap", 0), ("close-uffd",)])
@pytest.mark.parametrize("when", ["before", "out"])
def test_a_hostile_vmm_harms_itself_only(bus, directory, words, when):
    with pair(bus, directory) as (monitor, guest):
        if when == "out":
            monitor.enable()
        guest.hostile(*words)
        for member in ("Enable", "Disable", "Enable"):
            with contextlib.suppress(BusError):
                monitor.call(member)
            monitor.settled()
        guest.kill()
        assert monitor.wait_exit() == 0
        assert "Traceback" not in monitor.log


def test_refused_peers_do_not_fill_the_log(bus, directory):
    with pair(bus, directory) as (monitor, guest):
        for _ in range(150):
            with socket.socket(socket.AF_UNIX) as bad:
                bad.connect(str(monitor.socket))
                bad.sendall(b"{}\n")
                assert bad.recv(4096)
        assert "more of this kind is not logged for 60 s" in monitor.log
        assert guest.verify().wrong_bytes == 0


def test_no_fd_is_leaked_by_connections_that_come_to_nothing(bus, directory):
    with pair(bus, directory) as (monitor, guest):
        fds = Path(f"/proc/{monitor.pid}/fd")
        before = len(list(fds.iterdir()))
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as bad:
                bad.connect(str(monitor.socket))
                bad.sendall(b"[]\n")
                bad.recv(4096)
        monitor.until(lambda: len(list(fds.iterdir())) <= before, "no more fds than before")
        assert guest.verify().wrong_bytes == 0


# No fd left


@contextlib.contextmanager
def one_fd_left(pid):
    used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    free = next(number for number in range(len(used) + 1) if number not in used)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free + 1, before[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_a_child_that_cannot_be_kept_for_want_of_fds_is_kept_later(bus, directory):
    with pair(bus, directory) as (monitor, guest):
        monitor.all_out()
        with one_fd_left(monitor.pid):
            guest.fork(1)
            monitor.wait_log("ProcessForked from the engine cannot be handled; trying again")
            assert monitor.settled()["Processes"] == 2
        monitor.wait_log("(vmmswap-guest), forked by the VM, shares its memory")
        assert monitor.disable()["State"] == "Ready"
        assert "Traceback" not in monitor.log
        assert guest.verify().wrong_bytes == 0
