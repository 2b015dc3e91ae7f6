# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach to programs that make it hard: what they wait for, what they share, what they have no room for."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import bus as bus_support
from tests.support.attach import DEADLINE_S, NOBODY, Target
from tests.support.attach_odd import OddTarget
from tests.support.monitor import BusError, Monitor
from tests.support.programs import ROOT
from vmmswap.attach import hold, memory
from vmmswap.attach import plant as plant_module
from vmmswap.attach.attach import AttachedVm, attach_vm, detach_process
from vmmswap.attach.options import Options
from vmmswap.attach.remote_call import HeldThread
from vmmswap.attach.target import look_at
from vmmswap.errors import BusyError, NotSupportedError
from vmmswap.failpoint import CALL_STEPS, VARIABLE
from vmmswap.linux import userfaultfd
from vmmswap.linux.process import read_memory

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it traces other processes")

needs_bus = pytest.mark.skipif(bool(bus_support.missing()), reason=bus_support.missing() or "it is there")

ARENA_BYTES, SMALL_BYTES, IN_USE = 64 << 10, 2048, b"\x5a"  # as in attach_odd_target.c
SI_USER = 0  # the C library's word for raise(); the kernel's own for a fault are positive


def until(condition, what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.002)


def wait_asleep(target: OddTarget) -> None:
    path = Path(f"/proc/{target.pid}/stat")
    until(lambda: path.read_text().rpartition(")")[2].split()[0] == "S", "the target to wait")


def detach(vm: AttachedVm) -> None:
    with vm.fds:
        uffds = [process.uffd for process in vm.processes]
        for process in vm.processes:
            detach_process(process.pidfd, [process.uffd, *uffds], process.dummy_page)


@contextlib.contextmanager
def debugger(pid: int) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that traces this one."""
    code = f"""
import sys
from vmmswap.linux.ptrace import *
request(PTRACE_SEIZE, {pid})
print("seized", flush=True)
sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as tracer:
        assert tracer.stdout
        assert tracer.stdout.readline() == b"seized\n"
        try:
            yield tracer
        finally:
            tracer.communicate(b"\n")


# --- what the thread waits for


def test_a_signal_that_comes_while_a_thread_is_held_ends_its_wait() -> None:
    """As it would without us: pause(), or read() before a timer's SIGALRM, must not begin again then."""
    with OddTarget("wait") as target:
        wait_asleep(target)

        def work(thread: HeldThread) -> bool:
            with pytest.raises(OSError, match="Bad file descriptor"):
                thread.call("close", 1 << 20)
            os.kill(target.pid, signal.SIGUSR1)
            return True

        hold.run(look_at(target.pidfd), work)
        assert target.hear() == ("paused", errno.EINTR)


def test_without_a_signal_the_wait_goes_on() -> None:
    with OddTarget("wait") as target:
        for _ in range(5):
            wait_asleep(target)
            detach(attach_vm(target.pidfd))
            wait_asleep(target)
            os.kill(target.pid, signal.SIGUSR1)
            assert target.hear() == ("paused", errno.EINTR)


def test_a_pending_signal_stays_what_it_was() -> None:
    """Blocked, with the number of a fault: it is not the fault of what the thread does for us."""
    with OddTarget("held") as target:
        for _ in range(2):
            detach(attach_vm(target.pidfd))
        assert target.ask() == ("code", SI_USER)


def test_many_threads() -> None:
    with OddTarget("threads", "400") as target:
        before = target.traces
        detach(attach_vm(target.pidfd))
        assert target.traces == before
        assert target.ask() == ("alive", 1)


# --- who shares the memory


def test_no_frame_is_written_where_a_small_stack_ends() -> None:
    """A thread that waits comes first, but what lies below its stack is not stack."""
    with OddTarget("small") as target:
        what, addr = target.hear()
        assert what == "arena"
        until(lambda: "S" in states_of(target), "the other thread to wait")
        before = read_memory(target.pid, addr, ARENA_BYTES)
        assert before.count(IN_USE) > ARENA_BYTES - SMALL_BYTES
        vm = attach_vm(target.pidfd)
        detach(vm)
        assert read_memory(target.pid, addr, ARENA_BYTES) == before


def states_of(target: OddTarget) -> list[str]:
    tasks = Path(f"/proc/{target.pid}/task").iterdir()
    return [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks]


def test_while_a_thread_is_in_vfork() -> None:
    """That thread does not stop, the only other one runs: that one is held, in user code."""
    with OddTarget("vfork") as target:
        before = target.traces
        vm = attach_vm(target.pidfd)
        assert [process.pid for process in vm.processes] == [target.pid]
        detach(vm)
        assert target.traces == before


def test_a_process_of_the_same_address_space_is_no_other_mapper() -> None:
    with OddTarget("share") as target:
        vm = attach_vm(target.pidfd)
        assert [process.pid for process in vm.processes] == [target.pid]
        detach(vm)


def test_who_may_only_read_the_memory_is_refused_before_anything_is_changed() -> None:
    """No userfaultfd can be registered there, so that it would read zeros."""
    code = """
import mmap, os, sys
memory = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 16 << 20, prot=mmap.PROT_READ)
print("mapped", flush=True)
sys.stdin.readline()
"""
    with OddTarget("fork") as target:
        before = target.traces
        with subprocess.Popen(
            [sys.executable, "-c", code, str(guest_memory(target))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as reader:
            assert reader.stdout
            assert reader.stdout.readline() == b"mapped\n"
            with pytest.raises(NotSupportedError, match=rf"process {reader.pid} .* for reading only"):
                attach_vm(target.pidfd)
            reader.communicate(b"\n")
        assert target.traces == before
        detach(attach_vm(target.pidfd))


def guest_memory(target: OddTarget) -> Path:
    """The VMM's fd of it."""
    fds = Path(f"/proc/{target.pid}/fd").iterdir()
    return next(path for path in fds if "memfd:guest" in str(path.readlink()))


# --- no room, no right


@pytest.mark.parametrize("prefix", [(), NOBODY])
@pytest.mark.parametrize("files", ["0", "1", "2", "3", "4"])
def test_at_the_limit_of_open_files(prefix: tuple[str, ...], files: str) -> None:
    with OddTarget("files", files, prefix=prefix) as target:
        before = target.traces
        enough = 4 if prefix else 1
        if int(files) >= enough:
            detach(attach_vm(target.pidfd))
        else:
            with pytest.raises(
                NotSupportedError, match=r"Too many open files|reached its limit of open files"
            ):
                attach_vm(target.pidfd)
        assert target.traces == before
        assert target.ask() == ("alive", 1)


def test_without_address_space() -> None:
    with OddTarget("space") as target:
        before = target.traces
        with pytest.raises(NotSupportedError, match=r"mmap in process .*: Cannot allocate memory"):
            attach_vm(target.pidfd)
        assert target.traces == before
        assert target.ask() == ("alive", 1)


@pytest.mark.parametrize("force", [False, True])
def test_strict_seccomp_is_refused_whatever_is_forced(force: bool) -> None:
    with OddTarget("strict") as target:
        wait_asleep(target)
        with pytest.raises(NotSupportedError, match="strict seccomp"):
            attach_vm(target.pidfd, Options(force=force))
        assert target.ask() == ("alive", 1)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("file", "it is another user's, .*Use a memfd, or run `vmmswap-monitor"),
        ("nofd", "holds no fd of it.*run `vmmswap-monitor"),
        ("anonymous", "holds no fd of it.*run `vmmswap-monitor"),
    ],
)
def test_files_that_may_not_be_opened_in_the_units_sandbox(kind: str, reason: str) -> None:
    with OddTarget(kind, prefix=NOBODY) as target:
        before = target.traces
        code = f"""
import os
from vmmswap.attach.attach import attach_vm
from vmmswap.errors import NotSupportedError
try:
    attach_vm(os.pidfd_open({target.pid}))
except NotSupportedError as error:
    print(error)
"""
        done = subprocess.run(
            ["setpriv", "--bounding-set=-all,+sys_ptrace", sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert re.search(reason, done.stdout), done
        assert target.traces == before


# --- others at the same time, and our own end


def test_two_at_the_same_moment() -> None:
    """Neither sees anything of the other's yet: one is refused, and may when the first is done."""
    with OddTarget("fork") as target:
        first = attach_vm(target.pidfd)
        with pytest.raises(BusyError, match=r"another monitor is attaching to .* right now"):
            attach_vm(target.pidfd)
        assert target.traces[0].count("anon_inode:[userfaultfd]") == 1
        detach(first)
        detach(attach_vm(target.pidfd))


def test_killed_as_soon_as_anything_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target keeps the userfaultfd open: whatever is registered then would wait for ever at a hole."""
    register = userfaultfd.register_missing

    def register_and_die(uffd: int, addr: int, size_bytes: int) -> None:
        register(uffd, addr, size_bytes)
        os.kill(os.getpid(), signal.SIGKILL)

    with OddTarget("hole") as target:
        child = os.fork()
        if child == 0:
            monkeypatch.setattr(userfaultfd, "register_missing", register_and_die)
            attach_vm(target.pidfd)
            os._exit(0)
        os.waitpid(child, 0)
        assert target.ask() == ("hole", 0)


@pytest.mark.parametrize("prefix", [(), NOBODY])
@pytest.mark.parametrize("kind", ["nanosleep", "compute"])
def test_killed_in_any_of_its_calls(kind: str, prefix: tuple[str, ...]) -> None:
    """Not only in the first: with an fd, a page, a socket pair there already, which then stay, idle."""
    calls = 7 if prefix else 2  # socketpair, recvmsg, ioctl, close thrice, mmap; or userfaultfd, mmap
    with Target(f"{kind},{kind},memory", prefix=prefix) as target:
        for turn in range(2, calls + 1):
            for step in CALL_STEPS:
                child = os.fork()
                if child == 0:
                    os.environ[VARIABLE] = f"call.{step}=kill@{turn - 1}"
                    attach_vm(target.pidfd)
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, (step, turn)
                target.run_on()
                assert target.wrong == 0, (step, turn)
                assert target.status("TracerPid") == "0", (step, turn)
        detach(attach_vm(target.pidfd))


@pytest.mark.parametrize("call", ["mappings_of", "find_gadgets", "plant", "detach"])
def test_a_target_that_ends_in_mid_attach(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Whatever fails then, fails because it has ended, and is told so."""
    module, name = {
        "mappings_of": (memory, "mappings_of"),
        "find_gadgets": (hold, "find_gadgets"),
        "plant": (plant_module, "plant"),
        "detach": (plant_module, "fd_links"),
    }[call]
    original = getattr(module, name)

    with OddTarget("threads", "20") as target:

        def kill_first(*arguments, **options):
            os.kill(target.pid, signal.SIGKILL)
            os.waitid(os.P_PID, target.pid, os.WEXITED | os.WNOWAIT)
            return original(*arguments, **options)

        if call == "detach":
            vm = attach_vm(target.pidfd)
            monkeypatch.setattr(module, name, kill_first)
            detach(vm)
        else:
            monkeypatch.setattr(module, name, kill_first)
            with pytest.raises(NotSupportedError, match=r"process \d+ \(attach-odd-targ\) has ended"):
                attach_vm(target.pidfd)


# --- the monitor


def attached(bus, directory, target):
    return Monitor("web", bus, directory, "--attach", str(target.pid), listen=False)


@needs_bus
@pytest.mark.parametrize("prefix", [(), NOBODY])
@pytest.mark.parametrize("kind", ["file", "nofd", "anonymous"])
def test_shared_memory_of_every_kind(bus, directory, kind: str, prefix: tuple[str, ...]) -> None:
    with OddTarget(kind, prefix=prefix) as target:
        before = target.traces
        with attached(bus, directory, target) as monitor:
            for _ in range(2):
                status = monitor.all_out()
                assert status["SwapPages"] == status["TotalPages"] // 2
                assert target.ask() == ("wrong", 0)
            monitor.call("Detach")
            assert monitor.wait_exit() == 0
        assert target.traces == before
        assert target.ask() == ("wrong", 0)


@needs_bus
def test_a_shared_address_space_is_swapped_out(bus, directory) -> None:
    with OddTarget("share") as target, attached(bus, directory, target) as monitor:
        status = monitor.enable()
        assert (status["State"], status["Processes"]) == ("Active", 1), monitor.log
        monitor.call("Detach")
        assert monitor.wait_exit() == 0
        assert "anon_inode:[userfaultfd]" not in target.traces[0]


@needs_bus
def test_a_debugger_in_the_way_of_detach_leaves_nothing_that_waits(bus, directory) -> None:
    """The page that tells of forks is still there, and nobody to read of them."""
    with OddTarget("fork") as target, attached(bus, directory, target) as monitor:
        assert target.ask() == ("forked", 1)
        with debugger(target.pid):
            monitor.call("Detach")
            assert monitor.wait_exit() == 0
        assert "keeps an idle userfaultfd" in monitor.log
        assert target.ask() == ("forked", 1)


@needs_bus
@pytest.mark.parametrize("turn", [3, 4])  # of the calls made on our behalf: munmap, close
@pytest.mark.parametrize("step", ["registers", "entry", "exit"])
def test_a_monitor_that_is_killed_in_detach(bus, directory, turn: int, step: str) -> None:
    """What it was about goes on without it; its successor, here what its keeper becomes, has nothing left."""
    env = {VARIABLE: f"call.{step}=kill@{turn - 1}"}
    with OddTarget("fork") as target:
        before = target.traces
        monitor = Monitor("web", bus, directory, "--attach", str(target.pid), env=env, listen=False)
        with monitor:
            assert monitor.enable()["State"] == "Active"
            with contextlib.suppress(BusError):  # it answers, or is dead already
                monitor.call("Detach")
            assert monitor.wait_exit() == -signal.SIGKILL
            assert target.ask() == ("forked", 1)
            until(lambda: restarts(monitor) == 1, "the successor")
            monitor.call("Detach")
            until(lambda: restarts(monitor) is None, "the successor to end")
        assert target.traces == before
        assert target.ask() == ("forked", 1)


def restarts(monitor: Monitor) -> int | None:
    try:
        return monitor.status()["Restarts"]
    except BusError:
        return None


@needs_bus
def test_a_late_mapper_is_tried_until_it_can_be_attached_to(bus, directory) -> None:
    code = """
import mmap, os, sys
memory = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 16 << 20)
print("mapped", flush=True)
sys.stdin.readline()
"""
    with (
        OddTarget("fork") as target,
        attached(bus, directory, target) as monitor,
        subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.readline();" + code, str(guest_memory(target))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as mapper,
    ):
        assert mapper.stdin
        assert mapper.stdout
        with debugger(mapper.pid):
            assert monitor.enable()["State"] == "Active"
            mapper.stdin.write(b"\n")
            mapper.stdin.flush()
            assert mapper.stdout.readline() == b"mapped\n"
            monitor.wait_log(f"process {mapper.pid} (python) cannot be attached to")
        monitor.until(lambda: monitor.status()["Processes"] == 2, "the late mapper to be attached")
        assert monitor.log.count("has mapped guest memory while it is swapped out") == 1
        mapper.communicate(b"\n")
