# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach to real programs that know nothing of it: what it brings, what it leaves, what it refuses."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.attach import NOBODY, Target
from tests.support.programs import ROOT
from vmmswap.attach import memory, remote_call
from vmmswap.attach import plant as plant_module
from vmmswap.attach.attach import attach_process, attach_vm, detach_process
from vmmswap.attach.fd_table import fd_links
from vmmswap.attach.options import Options
from vmmswap.attach.target import look_at, open_target
from vmmswap.errors import AccessDeniedError, InvalidRegionError, NotSupportedError
from vmmswap.failpoint import DEVICE_STEP, STEPS, VARIABLE
from vmmswap.host.held_process import HeldProcess
from vmmswap.linux import userfaultfd
from vmmswap.linux.access import User
from vmmswap.linux.owned import OwnedFds
from vmmswap.monitor.mappers.coverage import name_of
from vmmswap.region_text import parse_region

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it traces other processes")

PAGE = mmap.PAGESIZE
ALL_KINDS = "nanosleep,futex,futex-untimed,read,poll,ppoll,epoll,compute,memory"
UFFD = "anon_inode:[userfaultfd]"


def attached_and_detached(target: Target) -> str:
    """Attach, look, detach; what the attach says of itself."""
    target.run_on(1)  # all its own fds are open then
    fds, maps = target.fds, target.maps
    vm = attach_vm(target.pidfd)
    with vm.fds:
        [process] = vm.processes
        assert process.pid == target.pid
        assert [region.addr for region in process.regions] == [target.addr]
        assert userfaultfd.features_of(process.uffd) == userfaultfd.WANTED & userfaultfd.kernel_features()
        assert os.get_blocking(process.uffd) is False
        assert sorted([*fds, UFFD]) == target.fds
        assert len(target.maps) == len(maps) + 1
        target.run_on()
        detach_process(target.pidfd, [process.uffd], process.dummy_page)
    assert target.fds == fds
    assert target.maps == maps
    assert target.status("TracerPid") == "0"
    target.run_on()
    assert target.wrong == 0
    return vm.explanation


@pytest.mark.parametrize("kind", ALL_KINDS.split(","))
def test_whatever_the_thread_was_doing_it_goes_on(kind: str) -> None:
    other = "read" if kind == "memory" else "memory"
    with Target(f"{kind},{other}") as target:
        for _ in range(3):
            attached_and_detached(target)
        if kind != "epoll":  # the kernel ends epoll_wait with EINTR for any tracer
            assert target.counters[0].interrupted == 0


def test_a_privileged_target_makes_its_own_userfaultfd() -> None:
    with Target(ALL_KINDS) as target:
        assert "userfaultfd(2)" in attached_and_detached(target)


@pytest.mark.parametrize("seccomp", ["", "seccomp-errno", "seccomp-trap", "seccomp-kill"])
def test_an_unprivileged_target_is_passed_the_device(seccomp: str) -> None:
    options = [seccomp] if seccomp else []
    with Target("ppoll,read,memory", *options, prefix=NOBODY) as target:
        assert "/dev/userfaultfd" in attached_and_detached(target)


@pytest.mark.parametrize("seccomp", ["seccomp-errno", "seccomp-trap", "seccomp-kill"])
def test_a_filter_is_asked_before_the_call_is_made(seccomp: str) -> None:
    """Root with CAP_SYS_PTRACE, yet userfaultfd(2) would be its death."""
    with Target("nanosleep,memory", seccomp) as target:
        assert "/dev/userfaultfd" in attached_and_detached(target)


def test_a_filter_that_allows_little_is_respected() -> None:
    with Target("nanosleep,nanosleep", "seccomp-few") as target:
        fds, maps = target.fds, target.maps
        with pytest.raises(NotSupportedError, match="would kill the process at"):
            attach_vm(target.pidfd)
        target.run_on()
        assert (target.fds, target.maps, target.wrong) == (fds, maps, 0)


def test_filters_that_cannot_be_read_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_call, "read_filters", lambda _tid: None)  # as without CAP_SYS_ADMIN
    with Target("nanosleep", "seccomp-errno") as target:
        with pytest.raises(NotSupportedError, match="seccomp filters that this monitor may not read"):
            attach_vm(target.pidfd)
        with attach_vm(target.pidfd, Options(force=True)).fds:
            target.run_on()


def test_a_trap_of_an_unread_filter_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_call, "read_filters", lambda _tid: None)
    with Target("nanosleep,memory", "seccomp-trap") as target:
        with attach_vm(target.pidfd, Options(force=True)).fds:
            target.run_on()
        assert target.wrong == 0


# --- whatever happens to us


def attach_in_child(pid: int, failpoint: str) -> tuple[int, str]:
    """Attach in a forked process, for its start takes no time; its return code and what it says."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.environ[VARIABLE] = failpoint
        try:
            attach_vm(os.pidfd_open(pid))
        except BaseException as error:
            os.write(writer, str(error).encode())
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


@pytest.mark.parametrize("kind", ["nanosleep", "futex", "read", "ppoll", "compute"])
def test_killed_at_any_step_the_target_runs_on(kind: str) -> None:
    """No way back but the one that lies on the thread's stack."""
    with Target(f"{kind},{kind},memory") as target:
        for step in STEPS:
            blocked = target.status("ShdPnd")
            assert attach_in_child(target.pid, f"{step}=kill")[0] == -signal.SIGKILL, step
            target.run_on()
            assert target.wrong == 0, step
            assert target.status("TracerPid") == "0", step
            assert target.status("ShdPnd") == blocked, step
        assert sum(item.interrupted for item in target.counters) == 0
        with attach_vm(target.pidfd).fds:  # and can be attached to as ever
            target.run_on()


def test_killed_while_an_unprivileged_target_gets_the_device() -> None:
    with Target("read,memory", "seccomp-kill", prefix=NOBODY) as target:
        for step in (*STEPS, DEVICE_STEP):
            assert attach_in_child(target.pid, f"{step}=kill")[0] == -signal.SIGKILL, step
            target.run_on()
            assert target.wrong == 0, step


# A call is done and nobody knows of it, or the thread has been let go: an idle fd and page stay.
_CANNOT_UNDO = ("call.exit", "mask-restored", "registers-restored", "detached")


@pytest.mark.parametrize("kind", ["nanosleep", "compute"])
def test_an_error_at_any_step_leaves_nothing(kind: str) -> None:
    with Target(f"{kind},memory") as target:
        for step in STEPS:
            fds, maps = target.fds, target.maps
            status, said = attach_in_child(target.pid, f"{step}=once:EIO")
            assert status == 1, step
            assert f"failpoint {step}" in said, step
            target.run_on()
            assert (target.wrong, target.status("TracerPid")) == (0, "0"), step
            if step not in _CANNOT_UNDO:
                assert (target.fds, target.maps) == (fds, maps), step


def test_signals_meanwhile_are_delivered_once_each() -> None:
    with Target("read,compute") as target:
        sent = 0
        stop = threading.Event()

        def send() -> None:
            nonlocal sent
            while not stop.is_set():
                os.kill(target.pid, signal.SIGRTMIN)
                sent += 1
                time.sleep(0.0005)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            for _ in range(20):
                vm = attach_vm(target.pidfd)
                with vm.fds:
                    detach_process(target.pidfd, [vm.vmm.uffd], vm.vmm.dummy_page)
        finally:
            stop.set()
            sender.join()
        target.run_on()
        assert target.signals == sent
        assert target.wrong == 0


def test_a_stopped_target_stays_stopped_and_continues() -> None:
    with Target("nanosleep,memory") as target:
        os.kill(target.pid, signal.SIGSTOP)
        while target.states() != {"T"}:
            time.sleep(0.002)
        vm = attach_vm(target.pidfd)
        with vm.fds:
            while target.states() != {"T"}:
                time.sleep(0.002)
            done = target.counters
            time.sleep(0.05)
            assert target.counters == done
            os.kill(target.pid, signal.SIGCONT)
            target.run_on()
        assert target.wrong == 0


# --- several processes


def test_every_process_that_maps_the_memory() -> None:
    with Target("nanosleep,memory", "fork") as target:
        vm = attach_vm(target.pidfd)
        with vm.fds:
            first, second = vm.processes
            assert first.pid == target.pid
            assert second.regions == first.regions
            uffds = [process.uffd for process in vm.processes]
            for process in vm.processes:
                detach_process(process.pidfd, uffds, process.dummy_page)
        assert UFFD not in target.fds


@contextmanager
def mapper_of(memfd: int) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that maps this memory."""
    command = [sys.executable, "-c", _MAP_AND_WAIT, str(memfd)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, pass_fds=[memfd], **pipes) as mapper:
        assert mapper.stdout
        mapper.stdout.readline()
        yield mapper
        if mapper.poll() is None:
            mapper.communicate(b"\n")


@pytest.fixture
def device_of_nobodys_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As the udev rule makes /dev/userfaultfd for the group vmmswap."""
    device = tmp_path / "userfaultfd"
    os.mknod(device, stat.S_IFCHR | 0o660, plant_module._DEVICE.stat().st_rdev)
    os.chown(device, 0, 65534)
    device.chmod(0o660)  # whatever the umask
    monkeypatch.setattr(plant_module, "_DEVICE", device)
    return device


def test_attach_gives_nobody_a_userfaultfd_that_he_may_not_have(device_of_nobodys_group: Path) -> None:
    """One that stops the kernel's accesses is a weapon: vm.unprivileged_userfaultfd=0 keeps it from users."""
    options = Options(user=User(65534, 65534))
    with Target("nanosleep", prefix=NOBODY) as target:
        fds, maps = target.fds, target.maps
        for uid, gid, mode in ((0, 0, 0o660), (0, 0, 0o600), (0, 65534, 0o640), (65534, 0, 0o060)):
            os.chown(device_of_nobodys_group, uid, gid)
            device_of_nobodys_group.chmod(mode)
            with pytest.raises(
                AccessDeniedError, match="its user may not have one: add that user to the group"
            ):
                attach_vm(target.pidfd, options)
            assert (target.fds, target.maps) == (fds, maps)
        for uid, gid, mode in ((0, 65534, 0o660), (65534, 0, 0o600), (0, 0, 0o666)):
            os.chown(device_of_nobodys_group, uid, gid)
            device_of_nobodys_group.chmod(mode)
            vm = attach_vm(target.pidfd, options)
            with vm.fds:
                detach_process(target.pidfd, [vm.vmm.uffd], vm.vmm.dummy_page)
        assert target.fds == fds
        target.run_on()


@pytest.mark.usefixtures("device_of_nobodys_group")
def test_an_ordinary_user_attaches_to_no_other_users_process() -> None:
    """Not even to one that maps the memory of his own VMM."""
    with Target("nanosleep", prefix=NOBODY) as target, OwnedFds() as memfds:
        fds, uid = target.fds, look_at(target.pidfd).uid
        options = Options(user=User(uid, uid), force=True)
        vm = attach_vm(target.pidfd, options)
        with vm.fds:
            memfds.add(os.dup(vm.memfds[0]))
            detach_process(target.pidfd, [vm.vmm.uffd], vm.vmm.dummy_page)
        with mapper_of(memfds[0]) as mapper:
            refusal = rf"process {mapper.pid} .* it is not uid {uid}'s \(its uids are \[0\]\)"
            with pytest.raises(AccessDeniedError, match=refusal):
                attach_vm(target.pidfd, options)
            with pytest.raises(AccessDeniedError, match=refusal):
                attach_process(mapper.pid, list(memfds), vm.vmm.regions, options)
            with OwnedFds([os.pidfd_open(mapper.pid)]) as pidfd:
                assert UFFD not in dict(fd_links(look_at(pidfd[0]))).values()
        assert target.fds == fds


def test_a_process_may_have_any_name() -> None:
    """Also one that the kernel cut in the middle of a character."""
    code = "open('/proc/self/comm', 'wb').write(b'caf\\xc3'); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as named:
        assert named.stdout
        named.stdout.readline()
        with HeldProcess(named.pid) as target:
            assert str(look_at(target.pidfd)) == f"process {named.pid} (caf\ufffd)"
        assert name_of(named.pid) == f"{named.pid} (caf\ufffd)"
        named.communicate(b"\n")


def test_one_more_process() -> None:
    with Target("nanosleep") as target:
        vm = attach_vm(target.pidfd)
        with vm.fds, mapper_of(vm.memfds[0]) as mapper:
            owned, process = attach_process(mapper.pid, vm.memfds, vm.vmm.regions)
            with owned:
                assert (process.pid, process.regions[0].size_bytes) == (mapper.pid, 16 << 20)
                mapper.communicate(b"\n")
                with pytest.raises(NotSupportedError):
                    attach_process(mapper.pid, vm.memfds, vm.vmm.regions)


_MAP_AND_WAIT = """
import mmap, sys
memory = mmap.mmap(int(sys.argv[1]), 16 << 20)
print("mapped", flush=True)
sys.stdin.readline()
"""


# --- what is refused


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("anonymous", r"no MADV_DONTFORK.*memory-backend-memfd.*share=on.*memoryBacking"),
        ("private", r"mapped privately.*memory-backend-memfd"),
        ("readonly", r"not readable and writable"),
        ("twice", r"maps guest memory twice"),
        ("hugetlb", r"is a hugetlb file: huge pages cannot be swapped out. Use normal pages"),
    ],
)
def test_memory_that_cannot_be_taken(option: str, reason: str) -> None:
    if option == "hugetlb":
        try:
            os.close(os.memfd_create("huge", os.MFD_HUGETLB))
        except OSError as error:
            pytest.skip(f"no hugetlb memfd on this kernel: {error.strerror}")
    with Target("nanosleep", option) as target:
        fds, maps = target.fds, target.maps
        with pytest.raises(NotSupportedError, match=reason):
            attach_vm(target.pidfd)
        assert (target.fds, target.maps) == (fds, maps)


def test_a_device_that_is_passed_through(vfio_device) -> None:
    with Target("nanosleep", prefix=("bash", "-c", 'exec 9<"$0"; exec "$@"', vfio_device)) as target:
        fds, maps = target.fds, target.maps
        with pytest.raises(
            NotSupportedError, match=rf"has {vfio_device} open \(fd 9\).*pins all of its memory"
        ):
            attach_vm(target.pidfd)
        assert (target.fds, target.maps) == (fds, maps)


def test_memory_whose_fd_was_closed_is_found_through_its_mapping() -> None:
    with Target("nanosleep,memory", "no-fd") as target, attach_vm(target.pidfd).fds:
        target.run_on()


def test_regions_by_hand() -> None:
    with Target("nanosleep", size_mib=32) as target:
        half = (target.addr, target.addr + (16 << 20))
        vm = attach_vm(target.pidfd, Options(regions=(half,)))
        with vm.fds:
            [region] = vm.vmm.regions
            assert (region.addr, region.size_bytes, region.offset_bytes) == (target.addr, 16 << 20, 0)
        for wrong in (
            (0x1000, 0x2000),
            (target.addr, target.addr + 1),
            (target.addr, target.addr + (1 << 40)),
        ):
            with pytest.raises(InvalidRegionError, match="region"):
                attach_vm(target.pidfd, Options(regions=(wrong,)))
        stack = next(area for area in memory.mappings_of(target.pid) if area.path == "[stack]")
        with pytest.raises(NotSupportedError, match=r"private memory.*share=on"):
            attach_vm(target.pidfd, Options(regions=((stack.start, stack.end),)))


def test_region_text() -> None:
    assert parse_region("7f00aa000-0x7f00ab000") == (0x7F00AA000, 0x7F00AB000)
    for wrong in ("", "1000", "1000-", "1000-xyz", "1000-2000-3000", "-1-2", "1000 - 2000"):
        with pytest.raises(InvalidRegionError, match="not START-END"):
            parse_region(wrong)


def test_attached_twice() -> None:
    with Target("nanosleep") as target:
        vm = attach_vm(target.pidfd)
        with vm.fds:
            userfaultfd.register_missing(vm.vmm.uffd, vm.vmm.dummy_page, PAGE)  # as a monitor does at once
            with pytest.raises(
                NotSupportedError, match=r"registered with a userfaultfd already.*another monitor"
            ):
                attach_vm(target.pidfd)
            assert target.fds.count(UFFD) == 1


def test_a_second_tracer() -> None:
    with Target("nanosleep") as target:
        code = f"""
import sys
from vmmswap.linux.ptrace import *
request(PTRACE_SEIZE, {target.pid})
print("seized", flush=True)
sys.stdin.readline()
"""
        with subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as debugger:
            assert debugger.stdout
            debugger.stdout.readline()
            with pytest.raises(NotSupportedError, match=f"traced already, by process {debugger.pid}"):
                attach_vm(target.pidfd)
            debugger.communicate(b"\n")
        with attach_vm(target.pidfd).fds:
            target.run_on()


def test_pids_that_are_no_vmm() -> None:
    with pytest.raises(NotSupportedError, match="No such process"):
        open_target(2**22 + 1)
    with pytest.raises(NotSupportedError, match="cannot attach to pid"):
        open_target(2**70)
    own = os.pidfd_open(os.getpid())
    try:
        with pytest.raises(NotSupportedError, match="this monitor itself"):
            attach_vm(own)
    finally:
        os.close(own)


def test_a_program_without_guest_memory() -> None:
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        pidfd = os.pidfd_open(sleeper.pid)
        try:
            with pytest.raises(NotSupportedError, match=r"\) has no guest memory that can.*: none"):
                attach_vm(pidfd)
        finally:
            os.close(pidfd)
            sleeper.kill()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_kernel_thread() -> None:
    if not Path("/proc/2/stat").exists() or parent_of(2) != 0:
        pytest.skip("no kernel threads are to be seen in this pid namespace")
    pidfd = os.pidfd_open(2)  # kthreadd, which lives as long as the kernel
    try:
        with pytest.raises(NotSupportedError, match="kernel thread"):
            attach_vm(pidfd)
    finally:
        os.close(pidfd)


def test_a_target_that_has_ended() -> None:
    with Target("nanosleep") as target:
        pidfd = os.dup(target.pidfd)
        os.kill(target.pid, signal.SIGKILL)
        while Path(f"/proc/{target.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.002)
        with pytest.raises(NotSupportedError, match="has ended, or is a zombie"):
            attach_vm(pidfd)
        detach_process(pidfd, [])
        os.close(pidfd)


def test_another_user_namespace() -> None:
    if subprocess.run(["unshare", "--user", "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("needs user namespaces")
    with (
        Target("nanosleep", prefix=("unshare", "--user")) as target,
        pytest.raises(NotSupportedError, match="another user namespace"),
    ):
        attach_vm(target.pidfd)


def test_a_32_bit_program(tmp_path: Path) -> None:
    program = tmp_path / "program"
    source = b'void _start(void){for(;;)__asm__ volatile("int $0x80"::"a"(29));}'  # pause
    made = subprocess.run(
        ["gcc", "-m32", "-static", "-nostdlib", "-fno-pie", "-no-pie", "-x", "c", "-", "-o", str(program)],
        input=source,
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("the compiler makes no 32-bit programs")
    try:
        child = subprocess.Popen([str(program)])
    except OSError as error:
        assert error.errno == errno.ENOEXEC
        pytest.skip("the kernel runs no 32-bit programs")
    with child:
        pidfd = os.pidfd_open(child.pid)
        try:
            with pytest.raises(NotSupportedError, match="32-bit"):
                attach_vm(pidfd)
        finally:
            os.close(pidfd)
            child.kill()


@pytest.mark.parametrize(
    ("chardev", "refused"),
    [
        ("reconnect=1", True),
        ("server=on,wait=off", True),
        ("server", True),
        ("reconnect=0", False),
        ("server=off", False),
    ],
)
def test_a_vhost_user_back_end_that_may_come_again(chardev: str, refused: bool) -> None:
    words = ["-chardev", f"socket,id=c0,path=/tmp/x,{chardev}", "-device", "vhost-user-fs-pci,chardev=c0"]
    with Target("nanosleep", *words) as target:
        if refused:
            with pytest.raises(NotSupportedError, match=r"connect again \(chardev c0\)"):
                attach_vm(target.pidfd)
        with attach_vm(target.pidfd, Options(force=refused)).fds:
            target.run_on()


def test_without_the_targets_uid_fds_are_found_by_number() -> None:
    """/proc/PID/fd and fdinfo are closed to a monitor with CAP_SYS_PTRACE alone: as it runs in its unit."""
    with Target("nanosleep", prefix=NOBODY) as target:
        code = f"""
import os
from vmmswap.attach import plant as plant_module
from vmmswap.linux.access import User
from vmmswap.attach.attach import attach_vm, detach_process
pidfd = os.pidfd_open({target.pid})
vm = attach_vm(pidfd)
detach_process(pidfd, [vm.vmm.uffd], vm.vmm.dummy_page)
print(vm.explanation)
"""
        done = subprocess.run(
            ["setpriv", "--bounding-set=-all,+sys_ptrace", sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "/dev/userfaultfd" in done.stdout
        assert UFFD not in target.fds
        target.run_on()


def test_fd_links_by_number() -> None:
    with Target("nanosleep") as target:
        links = [link for _, link in fd_links(look_at(target.pidfd))]
        assert sorted(links) == target.fds


def test_somebody_who_may_not() -> None:
    with Target("nanosleep") as target:
        code = f"""
import os
from vmmswap.attach import plant as plant_module
from vmmswap.linux.access import User
from vmmswap.attach.attach import attach_vm
from vmmswap.errors import AccessDeniedError
try:
    attach_vm(os.pidfd_open({target.pid}))
except AccessDeniedError as error:
    print(error)
"""
        done = subprocess.run(
            [*NOBODY, sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "CAP_SYS_PTRACE" in done.stdout, done.stderr
    assert AccessDeniedError.dbus_name.endswith("AccessDenied")
