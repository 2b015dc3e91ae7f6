# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach to programs whose guest memory is private: a thread is planted, works, and leaves no trace."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.guests.attached import attaching
from tests.integration.test_attach_hotplug import Target as HotplugTarget
from tests.support.attach import DEADLINE_S, NOBODY, Target
from tests.support.bus import missing
from tests.support.movers import end_mover
from tests.support.restarts import failing
from vmmswap.attach import planting
from vmmswap.attach.attach import attach_vm, detach_process
from vmmswap.attach.mailbox import Mailbox
from vmmswap.attach.options import Options
from vmmswap.attach.planting import check_machine
from vmmswap.attach.replant import replant
from vmmswap.errors import BusyError, NotSupportedError, VmmswapError
from vmmswap.failpoint import CALL_STEPS, STEPS, VARIABLE
from vmmswap.linux.process import status_of

REASON = missing()
if not REASON:
    try:
        check_machine()
    except VmmswapError as error:
        REASON = error.message
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

PRIVATE = ("anonymous", "not-forked")  # as QEMU makes guest memory
MIB = 1 << 20
PIECE_PAGES = 16 * MIB // 4096
REMOVING_STEPS = ("leaving", "removing")
CALLS_TO_REMOVE = 6  # munmap twice, close twice; munmap, close
CALLS_TO_START_ANEW = 5  # madvise four times, clone
PLANTING_STEPS = ("registered", "planted", "started")
CALLS = 11  # of an attach: userfaultfd, mmap; mmap, madvise, mprotect twice; memfd_create, mmap, madvise;
# userfaultfd; clone


def threads(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends just now
            found.append((task / "comm").read_text().strip())
    return sorted(found)


def await_mover(pid, own):
    """Until it has the planted thread beside its own: that gives itself its name when it begins."""
    end = time.monotonic() + DEADLINE_S
    while threads(pid) != sorted([*own, "vmmswap"]):
        assert time.monotonic() < end, threads(pid)
        time.sleep(0.002)


def traces(target):
    return target.fds, target.maps, threads(target.pid)


def detach(vm):
    process = vm.vmm
    detach_process(process.pidfd, [process.uffd], process.dummy_page, mailbox=process.mailbox)


@pytest.fixture
def service(bus, directory):
    with attaching(bus, directory) as running:
        yield running


@pytest.mark.parametrize("prefix", [(), NOBODY])
def test_planted_and_removed(prefix):
    with Target("nanosleep,memory,read,compute", *PRIVATE, prefix=prefix) as target:
        target.run_on(1)
        before = traces(target)
        for _ in range(2):
            vm = attach_vm(target.pidfd)
            with vm.fds:
                [region] = vm.vmm.regions
                assert (region.addr, region.size_bytes) == (target.addr, 16 * MIB)
                assert vm.memfds == ()
                await_mover(target.pid, before[2])
                target.run_on()
                detach(vm)
            assert traces(target) == before
        target.run_on()
        assert target.wrong == 0


def test_the_thread_sleeps_and_takes_no_signal():
    with Target("nanosleep,memory", *PRIVATE) as target:
        own = threads(target.pid)
        vm = attach_vm(target.pidfd)
        with vm.fds, Mailbox(vm.vmm.mailbox) as view:
            await_mover(target.pid, own)
            end = time.monotonic() + DEADLINE_S
            while (fields := status_of(target.pid, view.box.tid))["State"] != "S (sleeping)":
                assert time.monotonic() < end, fields
            unblockable = 1 << (signal.SIGKILL - 1) | 1 << (signal.SIGSTOP - 1)
            assert int(fields["SigBlk"], 16) | unblockable == (1 << 64) - 1
            detach(vm)


@pytest.mark.parametrize("prefix", [(), NOBODY])
def test_swapped_out_and_in_while_it_works(service, prefix):
    with Target("memory,nanosleep,read", *PRIVATE, prefix=prefix) as target:
        target.run_on(1)
        before = traces(target)
        service.attach(target.pid)
        for _ in range(3):
            status = service.monitor.enable()
            assert (status["State"], status["PinCheck"], status["Origin"]) == ("Active", "move", "attach")
            target.run_on(20)
        assert service.monitor.disable()["State"] == "Ready"
        target.run_on()
        assert service.monitor.enable()["State"] == "Active"
        service.detach()
        assert (traces(target), target.wrong) == (before, 0)
        target.run_on(20)
        assert target.wrong == 0


def test_monitors_are_killed_and_the_last_one_leaves_no_trace(service):
    """One in the middle of a swap-out, one while all is out."""
    with Target("memory,nanosleep", *PRIVATE) as target:
        target.run_on(1)
        before = traces(target)
        service.attach(target.pid)
        for point in ("move.moved", "move.stored", "move.out"):
            service.monitor.kill()
            monitor = service.start(env=failing(f"{point}=kill@1"))
            subprocess.run(monitor.call_command("Enable"), check=False, capture_output=True)
            monitor.process.wait(DEADLINE_S)
            monitor = service.start()
            target.run_on(20)
            monitor.settled()
            assert monitor.enable()["State"] == "Active"
        os.kill(service.monitor.pid, signal.SIGKILL)
        service.monitor.kill()
        monitor = service.start()
        target.run_on(20)
        service.detach()
        assert (traces(target), target.wrong) == (before, 0)


def test_the_vmm_ends(service):
    with Target("memory,nanosleep", *PRIVATE) as target:
        service.attach(target.pid)
        assert service.monitor.enable()["State"] == "Active"
        target.process.kill()
        assert service.monitor.wait_exit() == 0
    assert "the VMM has ended: all is freed" in service.monitor.log


def attach_in_child(pid, failpoint):
    """Its return code."""
    child = os.fork()
    if child == 0:
        os.environ[VARIABLE] = failpoint
        try:
            attach_vm(os.pidfd_open(pid))
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("action", ["kill", "once:EIO"])
def test_killed_or_failed_at_any_step_of_planting(action):
    """The target works on, and the next attach removes the thread that was left."""
    calls = [(f"call.{step}", skip) for step in CALL_STEPS for skip in range(CALLS)]
    once = [(step, 0) for step in (*STEPS, *PLANTING_STEPS) if not step.startswith("call.")]
    with Target("read,memory", *PRIVATE) as target:
        target.run_on(1)
        own = threads(target.pid)
        for step, skip in (*once, *calls):
            status = attach_in_child(target.pid, f"{step}={action}@{skip}")
            # An error where something is tidied up is no error of the attach.
            assert status == -signal.SIGKILL if action == "kill" else status in (0, 1), (step, skip)
            target.run_on(1)
            assert (target.wrong, target.status("TracerPid")) == (0, "0"), (step, skip)
        before = len(target.fds)
        vm = attach_vm(target.pidfd)
        with vm.fds:
            await_mover(target.pid, own)
            detach(vm)
        assert threads(target.pid) == own
        assert len(target.fds) <= before
        target.run_on()
        assert target.wrong == 0


def detach_in_child(pid, failpoint):
    """Attach, and detach with this failpoint; its return code."""
    child = os.fork()
    if child == 0:
        try:
            vm = attach_vm(os.pidfd_open(pid))
            os.environ[VARIABLE] = failpoint
            detach(vm)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("action", ["kill", "once:EIO"])
def test_killed_or_failed_at_any_step_of_removing(action):
    """What is left is idle. The VMM may use the addresses for itself as soon as they are free."""
    steps = [(step, 0) for step in REMOVING_STEPS]
    steps += [(f"call.{step}", skip) for step in CALL_STEPS for skip in range(CALLS_TO_REMOVE)]
    with Target("read,memory", *PRIVATE) as target:
        own = threads(target.pid)
        for step, skip in steps:
            status = detach_in_child(target.pid, f"{step}={action}@{skip}")
            assert status == (-signal.SIGKILL if action == "kill" else 1), (step, skip)
            target.run_on(1)
            assert (target.wrong, target.status("TracerPid")) == (0, "0"), (step, skip)
        vm = attach_vm(target.pidfd)
        with vm.fds:
            await_mover(target.pid, own)
            detach(vm)
        assert threads(target.pid) == own
        target.run_on()
        assert target.wrong == 0


def test_two_at_a_time():
    with Target("nanosleep,memory", *PRIVATE) as target:
        vm = attach_vm(target.pidfd)
        with vm.fds:
            with pytest.raises(BusyError, match="another monitor is attaching"):
                attach_vm(target.pidfd)
            target.run_on()
            detach(vm)
        with attach_vm(target.pidfd).fds:  # now there is none
            target.run_on()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["anonymous"], "no MADV_DONTFORK"),
        ([*PRIVATE, "locked"], "locked guest memory into RAM"),
        ([*PRIVATE, "seccomp-few"], "seccomp filter .* would kill the process"),
    ],
)
def test_refused_with_nothing_changed(options, reason):
    with Target("nanosleep,nanosleep", *options) as target:
        before = traces(target)
        with pytest.raises(NotSupportedError, match=reason):
            attach_vm(target.pidfd)
        assert traces(target) == before
        target.run_on()
        assert target.wrong == 0


def test_refused_where_the_kernel_cannot(monkeypatch):
    monkeypatch.setattr(planting.userfaultfd, "kernel_features", lambda: planting.Feature(0))
    reason = pytest.raises(NotSupportedError, match=r"cannot move it \(UFFDIO_MOVE, Linux 6.8\).*share=on")
    with Target("nanosleep", *PRIVATE) as target, reason:
        attach_vm(target.pidfd)


def test_a_region_by_hand():
    with Target("nanosleep,memory", *PRIVATE) as target:
        span = (target.addr, target.addr + 4 * MIB)
        vm = attach_vm(target.pidfd, Options(regions=(span,)))
        with vm.fds:
            assert [(item.addr, item.end) for item in vm.vmm.regions] == [span]
            detach(vm)
    with Target("nanosleep", "anonymous") as target:
        span = (target.addr, target.addr + 4 * MIB)
        with pytest.raises(NotSupportedError, match="no MADV_DONTFORK"):
            attach_vm(target.pidfd, Options(regions=(span,)))


def test_memory_comes_and_goes(service):
    with HotplugTarget("private") as target:
        links, own = target.links, threads(target.pid)
        service.attach(target.pid)
        assert service.monitor.all_out()["SwapPages"] == PIECE_PAGES
        target.ask("plug 1")
        assert service.monitor.all_out()["SwapPages"] == 2 * PIECE_PAGES
        target.check(0, 1)
        assert service.monitor.all_out()["SwapPages"] == 2 * PIECE_PAGES
        target.ask("unplug 1")  # while it is out: given up
        service.monitor.until(
            lambda: service.monitor.status()["SwapPages"] == PIECE_PAGES, "that to be forgotten"
        )
        status = service.monitor.all_out()
        assert (status["SwapPages"], status["TotalPages"]) == (PIECE_PAGES, PIECE_PAGES)
        target.check(0)
        service.detach()
        assert (target.links, threads(target.pid)) == (links, own)


def test_what_is_mapped_anew_never_has_the_old_contents(service):
    """Unmapped while it is out, and something new mapped there, which goes out in its turn."""
    with HotplugTarget("private") as target:
        service.attach(target.pid)
        target.ask("plug 1")
        assert service.monitor.all_out()["SwapPages"] == 2 * PIECE_PAGES
        target.ask("squat 1", "dontfork 1")
        target.ask("zeros 1", answer="right")
        service.monitor.all_out()
        target.ask("zeros 1", answer="right")
        target.check(0)
        service.detach()
        target.ask("zeros 1", answer="right")
        target.check(0)


def test_what_becomes_of_it_is_no_guest_memory(service):
    """Something else is mapped where guest memory was; it is left alone."""
    with HotplugTarget("private") as target:
        service.attach(target.pid)
        target.ask("plug 1")
        service.monitor.all_out()
        target.ask("squat 1")
        service.monitor.until(
            lambda: service.monitor.status()["SwapPages"] == PIECE_PAGES, "that to be forgotten"
        )
        assert service.monitor.all_out()["TotalPages"] == PIECE_PAGES
        target.ask("zeros 1", answer="right")
        target.check(0)
        service.detach()


def test_a_thread_that_is_gone_is_started_anew(service):
    """What is out is served without it, and the next Enable has another one."""
    with Target("memory,nanosleep", *PRIVATE) as target:
        target.run_on(1)
        before = traces(target)
        service.attach(target.pid)
        for _ in range(2):
            assert service.monitor.enable()["State"] == "Active"
            end_mover(target.pid)
            target.run_on(20)
        assert service.monitor.enable()["State"] == "Active"
        assert service.monitor.log.count("was gone: it has another one") == 2
        target.run_on(20)
        service.detach()
        assert (traces(target), target.wrong) == (before, 0)


def replant_in_child(vm, failpoint):
    """Its return code."""
    child = os.fork()
    if child == 0:
        os.environ[VARIABLE] = failpoint
        try:
            replant(vm.vmm.pidfd, vm.vmm.mailbox, spans_of(vm), force=False)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def spans_of(vm):
    return [(region.addr, region.size_bytes) for region in vm.vmm.regions]


@pytest.mark.parametrize("action", ["kill", "once:EIO"])
def test_killed_or_failed_while_it_is_started_anew(action):
    """There is one thread in the end, whoever has begun to make it."""
    once = {*STEPS, "planted", "started"} - {"fetched", "initialised"}
    steps = [(step, 0) for step in sorted(once) if not step.startswith("call.")]
    steps += [(f"call.{step}", skip) for step in CALL_STEPS for skip in range(CALLS_TO_START_ANEW)]
    with Target("read,memory", *PRIVATE) as target:
        target.run_on(1)
        before = traces(target)
        vm = attach_vm(target.pidfd)
        with vm.fds:
            for step, skip in steps:
                end_mover(target.pid)
                status = replant_in_child(vm, f"{step}={action}@{skip}")
                assert status == -signal.SIGKILL if action == "kill" else status in (0, 1), (step, skip)
                target.run_on(1)
                assert (target.wrong, target.status("TracerPid")) == (0, "0"), (step, skip)
                replant(vm.vmm.pidfd, vm.vmm.mailbox, spans_of(vm), force=False)
                assert not replant(vm.vmm.pidfd, vm.vmm.mailbox, spans_of(vm), force=False)
                await_mover(target.pid, before[2])
            detach(vm)
        assert (traces(target), target.wrong) == (before, 0)
