# SPDX-License-Identifier: GPL-2.0-or-later
"""The VMM ends with memory out, and is not the last that has it."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.guests.attached import attaching
from tests.support.attach import Target
from tests.support.bus import missing
from tests.support.handed_over import HandedOver
from tests.support.monitor import Monitor
from tests.support.restarts import failing, keepers, on_its_own
from tests.support.sharing_process import SharingProcess
from vmmswap.failpoint import VARIABLE

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

SIZE = 8 << 20
RANDOM = os.urandom(SIZE)
DIGEST = hashlib.sha256(RANDOM).hexdigest()


def fill(fd):
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, RANDOM, 0)


@pytest.fixture
def memory():
    """An fd of the guest's memory, which the VMM is given too."""
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    fill(fd)
    yield fd
    with contextlib.suppress(OSError):
        os.close(fd)


@pytest.fixture
def monitor(bus, directory):
    with Monitor("web", bus, directory) as running:
        yield running


def digest_of(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def all_out(monitor, memory):
    assert monitor.all_out()["SwapPages"] == SIZE // mmap.PAGESIZE
    assert os.fstat(memory).st_blocks == 0


def test_nobody_has_it(monitor, memory):
    with HandedOver(monitor.socket, memory) as vmm:
        all_out(monitor, memory)
        os.close(memory)
        vmm.kill()
        assert monitor.wait_exit() == 0
    assert "the VMM has ended: all is freed" in monitor.log
    assert "swapped in" not in monitor.log


def test_somebody_has_it_open(monitor, memory):
    with HandedOver(monitor.socket, memory) as vmm:
        all_out(monitor, memory)
        vmm.kill()
        assert monitor.wait_exit() == 0
    assert (
        f"process {os.getpid()} (pytest) has guest memory open (fd {memory}) and is not served" in monitor.log
    )
    assert (
        f"process {os.getpid()} (pytest) has its memory open (fd {memory}): all memory is swapped in"
        in monitor.log
    )
    assert digest_of(f"/proc/self/fd/{memory}") == DIGEST


def test_the_vmm_calls_exec_and_keeps_it(monitor, memory):
    with HandedOver(monitor.socket, memory) as vmm:
        all_out(monitor, memory)
        os.close(memory)
        vmm.exec()
        assert monitor.wait_exit() == 0
        assert f"process {vmm.pid} (sleep) has its memory open (fd {memory})" in monitor.log
        assert digest_of(f"/proc/{vmm.pid}/fd/{memory}") == DIGEST


def test_the_file_has_a_name(monitor):
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="vmmswap-test-") as file:
        fill(file.fileno())
        memory = os.open(file.name, os.O_RDWR | os.O_CLOEXEC)
        with HandedOver(monitor.socket, memory) as vmm:
            all_out(monitor, memory)
            os.close(memory)
            vmm.kill()
            assert monitor.wait_exit() == 0
        assert file.name in monitor.log
        assert digest_of(file.name) == DIGEST


MAPPER = """
import hashlib, mmap, os, sys
flags = {"shared": mmap.MAP_SHARED, "private": mmap.MAP_PRIVATE}[sys.argv[1]]
fd = int(sys.argv[2])
memory = mmap.mmap(fd, os.fstat(fd).st_size, flags=flags)
os.close(fd)
print(flush=True)
sys.stdin.readline()
print(hashlib.sha256(memory[:]).hexdigest(), flush=True)
"""


@pytest.mark.parametrize("kind", ["shared", "private"])
def test_somebody_maps_it_whom_nobody_told_of(monitor, memory, kind):
    """It maps the memory while that is out, and reads it once the VMM has ended."""
    with HandedOver(monitor.socket, memory) as vmm:
        all_out(monitor, memory)
        command = ["python3", "-c", MAPPER, kind, str(memory)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, pass_fds=[memory], **pipes) as mapper:
            assert mapper.stdout.readline() == b"\n"
            os.close(memory)
            vmm.kill()
            assert monitor.wait_exit() == 0
            assert mapper.communicate(b"\n")[0].decode().strip() == DIGEST


@contextlib.contextmanager
def two_vmms(service):
    """An attached VMM whose memory is out, and a second process that has taken the memory over, served too.
    Gives both, and the memory as an open file.
    """
    with Target("memory") as first, SharingProcess() as second:
        fds = Path(f"/proc/{first.pid}/fd").iterdir()
        memfd = next(fd for fd in fds if "memfd:guest" in str(fd.readlink()))
        with memfd.open("r+b", buffering=0) as memory:
            service.attach(first.pid)
            second.map(memory.fileno(), os.fstat(memory.fileno()).st_size)
            assert service.monitor.enable()["Processes"] == 2
            yield first, second, memory


def is_vmm_now(service, second):
    service.monitor.wait_log(f"process {second.pid} (python) is the VM's VMM from now on")


def test_another_process_of_an_attached_vm_is_its_vmm_then(bus, directory):
    with attaching(bus, directory) as service, two_vmms(service) as (first, second, memory):
        monitor = service.monitor
        first.process.kill()
        is_vmm_now(service, second)
        assert monitor.status()["State"] == "Active"
        digest = second.digest()
        assert monitor.all_out()["Processes"] == 1
        assert second.digest() == digest
        assert monitor.all_out()["State"] == "Active"
        memory.close()
        second.process.kill()
        assert monitor.wait_exit() == 0
        assert "the VMM has ended: all is freed" in monitor.log


def test_a_successor_knows_who_is_the_vmm_now(bus, directory):
    with attaching(bus, directory) as service, two_vmms(service) as (first, second, _):
        first.process.kill()
        is_vmm_now(service, second)
        digest = second.digest()
        assert service.monitor.all_out()["Processes"] == 1
        service.monitor.kill()
        monitor = service.start()
        assert second.digest() == digest
        assert monitor.all_out()["Processes"] == 1
        service.detach()
        assert second.digest() == digest


def test_killed_when_another_process_is_made_the_vmm(bus, directory):
    with attaching(bus, directory) as service:
        service.monitor.kill()
        service.start(env={VARIABLE: "vmm.promoted=kill"})
        with two_vmms(service) as (first, second, memory):
            first.process.kill()
            assert service.monitor.wait_exit() == -signal.SIGKILL
            monitor = service.start()
            assert second.digest() == digest_of(f"/proc/self/fd/{memory.fileno()}")
            monitor.until(lambda: monitor.status()["Processes"] == 1, "the first VMM to be forgotten")
            assert monitor.all_out()["State"] == "Active"
            service.detach()


def test_the_vmm_ends_while_there_is_no_monitor_and_is_not_the_last(bus, directory):
    with attaching(bus, directory) as service, two_vmms(service) as (first, second, memory):
        service.monitor.kill()
        first.process.kill()
        first.process.wait()
        service.start()
        is_vmm_now(service, second)
        assert second.digest() == digest_of(f"/proc/self/fd/{memory.fileno()}")


@pytest.mark.parametrize("ends", [True, False])
def test_a_child_outlives_its_vmm(monitor, memory, ends):
    """It is served until it ends, which it should soon; else it is given all of the memory."""
    with HandedOver(monitor.socket, memory) as vmm:
        vmm.fork()
        all_out(monitor, memory)
        os.close(memory)
        vmm.kill()
        assert vmm.digest() == DIGEST
        if ends:
            vmm.kill_child()
        assert monitor.wait_exit() == 0
        if ends:
            assert "the VMM has ended: all is freed" in monitor.log
        else:
            assert "still has its memory" in monitor.log
            assert vmm.digest() == DIGEST


def test_a_child_outlives_its_vmm_and_the_monitor(bus, memory):
    """There is no service manager: the keeper becomes the monitor while anybody is to be served."""
    with on_its_own(bus, {}) as monitor:
        monitor.wait_on_bus()
        with HandedOver(monitor.socket, memory) as vmm:
            vmm.fork()
            monitor.until(lambda: monitor.status()["Processes"] == 2, "the child")
            all_out(monitor, memory)
            os.close(memory)
            vmm.kill()
            monitor.wait_log("looking for others that have its memory")
            monitor.kill()
            assert vmm.digest() == DIGEST


def test_the_vmm_and_the_monitor_end_at_once_and_somebody_has_it_open(bus, memory):
    """There is no service manager. When the keeper looks, none of the VM's processes is left."""
    with on_its_own(bus, {}) as monitor:
        monitor.wait_on_bus()
        with HandedOver(monitor.socket, memory) as vmm:
            all_out(monitor, memory)
            (keeper,) = keepers(monitor)
            os.kill(keeper, signal.SIGSTOP)
            monitor.kill()
            vmm.kill()
            os.kill(keeper, signal.SIGCONT)
            monitor.wait_log(f"process {os.getpid()} (pytest) has its memory open (fd {memory})")
            monitor.until(lambda: digest_of(f"/proc/self/fd/{memory}") == DIGEST, "all to be brought back")


def test_killed_while_all_is_brought_back_for_who_has_it_open(bus, memory):
    """It dies with 40 of 64 pieces brought back, so that its keeper, as the next monitor, does not."""
    with on_its_own(bus, failing("restore.copied=kill@40")) as monitor:
        monitor.wait_on_bus()
        with HandedOver(monitor.socket, memory) as vmm:
            all_out(monitor, memory)
            vmm.kill()
            assert monitor.wait_exit() == -signal.SIGKILL
            monitor.until(lambda: digest_of(f"/proc/self/fd/{memory}") == DIGEST, "all to be brought back")
