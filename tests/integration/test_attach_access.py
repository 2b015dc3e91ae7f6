# SPDX-License-Identifier: GPL-2.0-or-later
"""Whom a user may attach to: our answer is the kernel's, and what was looked at is what is attached to.

The programs here run as real users, and change into set-uid ones where it hurts most.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.attach import Target
from vmmswap.attach import hold, remote_call
from vmmswap.attach import plant as plant_module
from vmmswap.attach.attach import attach_vm
from vmmswap.attach.options import Options
from vmmswap.attach.plant import plant
from vmmswap.attach.target import look_at, thread_ids
from vmmswap.errors import AccessDeniedError, NotSupportedError, VmmswapError
from vmmswap.failpoint import DEVICE_STEP
from vmmswap.linux import access
from vmmswap.linux.access import User
from vmmswap.linux.owned import OwnedFds

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it starts programs of other users")

UID, GID, OTHER_GID = 65534, 65534, 1
DEADLINE_S = 60.0
PLAIN = ("setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups")
ASK_THE_KERNEL = """
import ctypes, os, sys
print(ctypes.CDLL(None).syscall(438, os.pidfd_open(int(sys.argv[1])), 0, 0) >= 0)
"""


@pytest.fixture(scope="module")
def programs() -> Iterator[Path]:
    """A directory of a user's, with set-uid and set-gid copies of `sleep`, and one that cannot be read."""
    with tempfile.TemporaryDirectory(prefix="vmmswap-") as name:
        path = Path(name)
        path.chmod(0o755)
        if os.statvfs(path).f_flag & os.ST_NOSUID:
            pytest.skip(f"{path} is on a file system without set-uid programs")
        sleep = shutil.which("sleep")
        assert sleep
        for program, mode in (("setuid", 0o4755), ("setgid", 0o2755), ("unreadable", 0o711)):
            shutil.copy(sleep, path / program)
            os.chown(path / program, 0, OTHER_GID)
            (path / program).chmod(mode)
        yield path


@contextmanager
def running(*command: str) -> Iterator[int]:
    """Its pid, once it has become what it is in the end: asleep."""
    with subprocess.Popen(command) as process:
        try:
            until(lambda: is_asleep(process.pid))
            yield process.pid
        finally:
            process.kill()


def is_asleep(pid: int) -> bool:
    """In the system call that `sleep` makes."""
    try:
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("35", "230", "115")
    except OSError:
        return False


def until(condition) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def kernels_answer(pid: int) -> tuple[bool, int]:
    """Whether the user may take the process's standard input, and the pid of the one who asked."""
    command = [*PLAIN, sys.executable, "-c", ASK_THE_KERNEL, str(pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asker:
        output, _ = asker.communicate()
    return output.strip() == "True", asker.pid


def our_answer(pid: int, asker: int) -> bool:
    try:
        access.check_process(pid, User(UID, GID, asker))
    except AccessDeniedError:
        return False
    return True


@pytest.mark.parametrize(
    ("prefix", "program", "expected"),
    [
        (PLAIN, "sleep", True),
        (PLAIN, "setuid", False),
        (PLAIN, "setgid", False),
        ((*PLAIN, "env"), "unreadable", False),  # setpriv itself still has capabilities and may read it
        ((*PLAIN, "--inh-caps=+net_raw", "--ambient-caps=+net_raw"), "sleep", False),
        (("setpriv", f"--reuid={UID}", f"--regid={OTHER_GID}", "--clear-groups"), "sleep", False),
        (("setpriv", f"--reuid={UID + 1}", f"--regid={GID}", "--clear-groups"), "sleep", False),
        (("setpriv", "--reuid=0", f"--regid={GID}", "--clear-groups"), "sleep", False),
    ],
)
def test_our_answer_is_the_kernels(
    programs: Path, prefix: tuple[str, ...], program: str, expected: bool
) -> None:
    path = program if program == "sleep" else str(programs / program)
    with running(*prefix, path, "600") as pid:
        answer, asker = kernels_answer(pid)
        assert our_answer(pid, asker) == answer
        if not Path("/proc/sys/kernel/yama/ptrace_scope").exists():
            assert answer == expected
        else:
            assert expected or not answer


def test_yama(tmp_path: Path) -> None:
    """A restricted user may trace descendants alone; beyond that, nothing."""
    setting = tmp_path / "ptrace_scope"
    user, stranger = User(UID, GID, os.getpid()), User(UID, GID, 1 << 22)
    with running("sleep", "600") as pid:
        for scope, allowed in (("0", [user, stranger]), ("1", [user]), ("2", []), ("3", [])):
            setting.write_text(scope + "\n")
            for one in (user, stranger):
                with ExitStack() as expected:
                    if one not in allowed:
                        expected.enter_context(pytest.raises(AccessDeniedError, match="Yama"))
                    access._check_yama(pid, one, setting)


def test_no_set_gid_program_is_attached_to() -> None:
    """Nor one with capabilities. Root may."""
    options = Options(user=User(UID, GID), force=True)
    prefix = ("setpriv", f"--reuid={UID}", f"--rgid={GID}", f"--egid={OTHER_GID}", "--clear-groups")
    with Target("nanosleep", prefix=prefix) as target:
        fds, maps = target.fds, target.maps
        with pytest.raises(AccessDeniedError, match=rf"it is not gid {GID}'s"):
            attach_vm(target.pidfd, options)
        assert (target.fds, target.maps) == (fds, maps)
        attach_vm(target.pidfd, Options(force=True)).fds.close()
        target.run_on()


# execve() in the middle of an attach.

CHANGING = """
import os, sys, threading, time
def change():
    os.read(0, 1)
    os.execv(sys.argv[1], sys.argv[1:])
threading.Thread(target=change).start()
print(flush=True)
while True:
    time.sleep(600)
"""


@contextmanager
def changing(*command: str, prefix: tuple[str, ...] = PLAIN) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose first thread waits; change() has the second one run the command."""
    with subprocess.Popen(
        [*prefix, sys.executable, "-c", CHANGING, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            until(lambda: is_asleep(process.pid))
            yield process
        finally:
            process.kill()


def change(process: subprocess.Popen[bytes], program: str) -> None:
    assert process.stdin
    process.stdin.write(b"\n")
    process.stdin.flush()
    until(lambda: runs(process.pid, program) and is_asleep(process.pid))


def runs(pid: int, program: str) -> bool:
    try:
        return str(Path(f"/proc/{pid}/exe").readlink()) == program
    except FileNotFoundError:  # in the middle of execve()
        return False


def test_a_process_that_becomes_a_set_uid_program_before_it_is_held(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = str(programs / "setuid")
    find_gadgets = hold.find_gadgets

    def then_change(*arguments):
        found = find_gadgets(*arguments)
        change(process, program)
        return found

    with changing(program, "600") as process, OwnedFds([os.pidfd_open(process.pid)]) as pidfd:
        target = look_at(pidfd[0], User(UID, GID))
        monkeypatch.setattr(hold, "find_gadgets", then_change)
        with pytest.raises(AccessDeniedError, match=rf"it is not uid {UID}'s"):
            plant(target)
        assert "userfaultfd" not in links(process.pid)


def test_a_process_that_becomes_another_program_while_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that is held ends then, and the program that has its number gets none of its bytes."""
    program = shutil.which("sleep")
    assert program
    read_filters = remote_call.HeldThread._read_filters
    stacks = []

    def change_first(thread):
        read_filters(thread)
        change(process, program)
        stacks.append(stack_of(process.pid))

    # Its stack lies where the former one did. (A set-uid program would get another place, a random one.)
    unchanged = ("setarch", "-R", *PLAIN)
    with (
        changing(program, "600", prefix=unchanged) as process,
        OwnedFds([os.pidfd_open(process.pid)]) as pidfd,
    ):
        target = look_at(pidfd[0], User(UID, GID))
        monkeypatch.setattr(remote_call.HeldThread, "_read_filters", change_first)
        with pytest.raises((VmmswapError, OSError)):
            plant(target)
        assert [stack_of(process.pid)] == stacks


def links(pid: int) -> str:
    return " ".join(str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir())


def stack_of(pid: int) -> bytes:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    start, end = next(line.split()[0].split("-") for line in lines if line.endswith("[stack]"))
    with Path(f"/proc/{pid}/mem").open("rb") as memory:
        memory.seek(int(start, 16))
        return memory.read(int(end, 16) - int(start, 16))


def test_one_that_has_ended() -> None:
    with pytest.raises(NotSupportedError, match="has ended"):
        access.check_process(1 << 22, User(UID, GID))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the registers are x86-64's")
def test_a_call_that_is_not_the_one_we_want_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code can be changed under our hands through /proc/PID/mem that was opened long ago."""
    begin = remote_call.HeldThread._begin

    def begin_and_change(thread, name, arguments):
        begin(thread, name, arguments)
        if name == "mmap":
            registers = thread._arch.read(thread.tid)
            registers.rax, registers.rdi = 95, 0o777  # umask
            thread._arch.write(thread.tid, registers)

    with Target("nanosleep,read") as target:
        before, fds, maps = target.status("Umask"), target.fds, target.maps
        monkeypatch.setattr(remote_call.HeldThread, "_begin", begin_and_change)
        with pytest.raises(
            NotSupportedError, match="made a call other than mmap: something is changing its code"
        ):
            plant(look_at(target.pidfd))
        assert (target.status("Umask"), target.fds, target.maps) == (before, fds, maps)
        target.run_on()
        assert target.wrong == 0


# The device that is open in a VMM for an instant.

WITH_A_SHARER = """
import ctypes, mmap, os, time
fd = os.memfd_create("guest")
os.ftruncate(fd, 32 << 20)
memory = mmap.mmap(fd, 32 << 20)
parent = os.getpid()
child = ctypes.CDLL(None).syscall(56, 0x400 | 17, 0, 0, 0, 0)  # clone(CLONE_FILES | SIGCHLD)
if child:
    print(child, flush=True)
    time.sleep(600)
while os.getppid() == parent:
    time.sleep(0.05)
"""
TAKE = """
import ctypes, os, sys
pid, last = int(sys.argv[1]), int(sys.argv[2])
pidfd = os.pidfd_open(pid)
fds = [ctypes.CDLL(None).syscall(438, pidfd, number, 0) for number in range(last)]
print([os.readlink(f"/proc/self/fd/{fd}") for fd in fds if fd >= 0])
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of system calls are x86-64's")
def test_nobody_takes_the_device_while_a_vmm_has_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not its other threads, not who shares its fds, and not another process of the same user."""
    seen = []

    def look(step: str) -> None:
        if step == DEVICE_STEP:
            seen.append(
                ([state_of(tid) for tid in (*thread_ids(vmm.pid), sharer)], links(vmm.pid), taken(vmm.pid))
            )

    monkeypatch.setattr(plant_module, "reach", look)
    command = [*PLAIN, sys.executable, "-c", WITH_A_SHARER]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as vmm:
        try:
            assert vmm.stdout
            sharer = int(vmm.stdout.readline())
            until(lambda: is_asleep(vmm.pid) and is_asleep(sharer))
            before = taken(vmm.pid)
            with OwnedFds([os.pidfd_open(vmm.pid)]) as pidfd:
                planted = plant(look_at(pidfd[0]))
            os.close(planted.uffd)
            [(states, open_then, taken_then)] = seen
            assert states == ["t"] * 2
            assert DEVICE in open_then
            assert taken_then == "[]"
            assert DEVICE not in links(vmm.pid)
            assert "userfaultfd]" in links(vmm.pid)
            # The sharer looks around now and then.
            until(lambda: state_of(vmm.pid) == state_of(sharer) == "S")
            assert (before == "[]") == (taken(vmm.pid) == "[]")  # dumpable as before
        finally:
            vmm.kill()


DEVICE = "/dev/userfaultfd"


def taken(pid: int) -> str:
    """What a process of the same user can take of that one's fds."""
    command = [*PLAIN, sys.executable, "-c", TAKE, str(pid), "32"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def state_of(tid: int) -> str:
    return Path(f"/proc/{tid}/stat").read_text().rpartition(")")[2].split()[0]
