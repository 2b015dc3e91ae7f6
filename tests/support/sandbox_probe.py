# SPDX-License-Identifier: GPL-2.0-or-later
"""Tries, one by one, what the monitor needs and what it must not be able to do; prints the outcomes as JSON.

Run by test_sandbox.py inside the sandbox of vmmswap@.service, with the pid, address and memfd number of
sandbox_target.py and the instance's name. An outcome is "ok", or the name of an errno.
System call numbers are x86-64's.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

SYS_PTRACE, SYS_PROCESS_VM_READV, SYS_BPF, SYS_USERFAULTFD = 101, 310, 321, 323
SYS_MINCORE, SYS_PROCESS_VM_WRITEV = 27, 311
SYS_PIDFD_GETFD, SYS_PROCESS_MADVISE = 438, 440
PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT, WAIT_ALL = 17, 0x4206, 0x4207, 0x40000000
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_COPY, USERFAULTFD_IOC_NEW = 0xC018AA3F, 0xC020AA00, 0xC028AA03, 0xAA00
UFFD_API, FEATURE_EVENT_FORK, MODE_MISSING_AND_WP = 0xAA, 1 << 1, 3
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
BPF_PROG_LOAD, BPF_PROG_TEST_RUN, BPF_PROG_TYPE_SYSCALL, BPF_F_SLEEPABLE = 5, 10, 31, 16
MADV_COLD, CLONE_NEWNS, MS_BIND = 20, 0x20000, 0x1000

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def syscall(number: int, *args: int) -> int:
    return checked(libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(arg) for arg in args)))


class Probe:
    """One method per thing to try; those that start with `not_` have to fail."""

    def __init__(self, pid: int, addr: int, memfd: int, name: str) -> None:
        self.pid, self.addr, self.memfd, self.name = pid, addr, memfd, name

    def userfaultfd(self) -> None:
        self._use_uffd(syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK))

    def userfaultfd_device(self) -> None:
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
        self._use_uffd(fcntl.ioctl(device, USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK))
        os.close(device)

    def _use_uffd(self, uffd: int) -> None:
        """Registers memory of our own with EVENT_FORK, and fills a page of it."""
        memory = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_SHARED)
        addr = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        source = ctypes.create_string_buffer(b"copied", mmap.PAGESIZE)
        fcntl.ioctl(uffd, UFFDIO_API, struct.pack("QQQ", UFFD_API, FEATURE_EVENT_FORK, 0))
        fcntl.ioctl(uffd, UFFDIO_REGISTER, struct.pack("QQQQ", addr, mmap.PAGESIZE, MODE_MISSING_AND_WP, 0))
        copy = struct.pack("QQQQq", addr, ctypes.addressof(source), mmap.PAGESIZE, 0, 0)
        fcntl.ioctl(uffd, UFFDIO_COPY, copy)
        assert memory[:6] == b"copied"
        os.close(uffd)

    def freeze(self) -> None:
        for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
            syscall(SYS_PTRACE, request, self.pid, 0, 0)
        os.waitpid(self.pid, WAIT_ALL)
        syscall(SYS_PTRACE, PTRACE_DETACH, self.pid, 0, 0)

    def maps_of_another_user(self) -> None:
        assert "/memfd:guest" in Path(f"/proc/{self.pid}/maps").read_text()
        assert list(Path(f"/proc/{self.pid}/task").iterdir())

    def process_of_the_guest_by_listing(self) -> None:
        assert Path(f"/proc/{self.pid}") in Path("/proc").iterdir()

    def pidfd_getfd(self) -> None:
        pidfd = os.pidfd_open(self.pid)
        memfd = syscall(SYS_PIDFD_GETFD, pidfd, self.memfd, 0)
        assert os.pread(memfd, 11, 0) == b"guest bytes"
        os.close(memfd)
        os.close(pidfd)

    def process_vm_readv(self) -> None:
        buffer = ctypes.create_string_buffer(11)
        here = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(buffer), 11))
        there = ctypes.create_string_buffer(struct.pack("QQ", self.addr, 11))
        vectors = (ctypes.addressof(here), 1, ctypes.addressof(there), 1, 0)
        assert syscall(SYS_PROCESS_VM_READV, self.pid, *vectors) == 11
        assert buffer.raw == b"guest bytes"

    def mincore(self) -> None:
        """Of a file's mapping, as the engine asks which pages it has."""
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_SHARED)
        page[0] = 1
        found = ctypes.create_string_buffer(1)
        addr = ctypes.addressof(ctypes.c_char.from_buffer(page))
        syscall(SYS_MINCORE, addr, mmap.PAGESIZE, ctypes.addressof(found))
        assert found.raw == b"\1"

    def process_vm_writev_to_ourselves(self) -> None:
        source, target = ctypes.create_string_buffer(b"bytes", 5), ctypes.create_string_buffer(5)
        here = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(source), 5))
        there = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(target), 5))
        vectors = (ctypes.addressof(here), 1, ctypes.addressof(there), 1, 0)
        assert syscall(SYS_PROCESS_VM_WRITEV, os.getpid(), *vectors) == 5
        assert target.raw == b"bytes"

    def process_madvise(self) -> None:
        pidfd = os.pidfd_open(self.pid)
        vector = ctypes.create_string_buffer(struct.pack("QQ", self.addr, mmap.PAGESIZE))
        syscall(SYS_PROCESS_MADVISE, pidfd, ctypes.addressof(vector), 1, MADV_COLD, 0)
        os.close(pidfd)

    def bpf(self) -> None:
        """Loads and runs a program that reads kernel memory (bpf_probe_read_kernel: CAP_PERFMON)."""
        code = (
            struct.pack("=BBhi", 0xBF, 0xA1, 0, 0)  # r1 = r10
            + struct.pack("=BBhi", 0x07, 0x01, 0, -8)  # r1 -= 8
            + struct.pack("=BBhi", 0xB7, 0x02, 0, 8)  # r2 = 8
            + struct.pack("=BBhi", 0xB7, 0x03, 0, 0)  # r3 = 0, an address that fails
            + struct.pack("=BBhi", 0x85, 0, 0, 113)  # call bpf_probe_read_kernel
            + struct.pack("=BBhi", 0xB7, 0, 0, 0)  # r0 = 0
            + struct.pack("=BBhi", 0x95, 0, 0, 0)  # exit
        )
        code_buffer = ctypes.create_string_buffer(code, len(code))
        license_text = ctypes.create_string_buffer(b"GPL")
        addresses = (ctypes.addressof(code_buffer), ctypes.addressof(license_text))
        load = struct.pack(
            "=IIQQIIQII", BPF_PROG_TYPE_SYSCALL, len(code) // 8, *addresses, 0, 0, 0, 0, BPF_F_SLEEPABLE
        )
        attr = ctypes.create_string_buffer(load, 128)
        program = syscall(SYS_BPF, BPF_PROG_LOAD, ctypes.addressof(attr), 128)
        attr = ctypes.create_string_buffer(struct.pack("=I", program), 128)
        syscall(SYS_BPF, BPF_PROG_TEST_RUN, ctypes.addressof(attr), 128)
        os.close(program)

    def kernel_types(self) -> None:
        assert Path("/sys/kernel/btf/vmlinux").read_bytes()[:2] == b"\x9f\xeb"

    def memory_lock(self) -> None:
        checked(libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT))
        mmap.mmap(-1, 1 << 30).close()  # more than any finite limit that a container is likely to have

    def cpu_affinity(self) -> None:
        os.sched_setaffinity(0, os.sched_getaffinity(0))

    def unnamed_file_in_the_state_directory(self) -> None:
        directory = os.environ["STATE_DIRECTORY"]
        assert directory == f"/var/lib/vmmswap/{self.name}"
        os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600))

    def private_temporary_files(self) -> None:
        assert not Path("/tmp/of-the-machine").exists()
        Path("/tmp/of-the-sandbox").write_text("x")

    def log_file(self) -> None:
        (Path(os.environ["LOGS_DIRECTORY"]) / "page_fault.log").write_text("{}\n")

    def system_bus(self) -> None:
        with socket.socket(socket.AF_UNIX) as bus:
            bus.connect("/run/dbus/system_bus_socket")

    def journal(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            journal.sendto(b"MESSAGE=probe\n", "/run/systemd/journal/socket")

    def memory_and_its_limits(self) -> None:
        assert "MemAvailable" in Path("/proc/meminfo").read_text()
        assert list(Path("/sys/fs/cgroup").iterdir())

    def no_core_dumps(self) -> None:
        assert resource.getrlimit(resource.RLIMIT_CORE) == (1, 1)

    # Nothing of what follows is the monitor's business.

    def not_home(self) -> None:
        Path("/home/somebody/secret").read_text()

    def not_root_home(self) -> None:
        Path("/root/secret").read_text()

    def not_ipv4(self) -> None:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()

    def not_ipv6(self) -> None:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()

    def not_netlink(self) -> None:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()

    def not_write_etc(self) -> None:
        Path("/etc/vmmswap-probe").write_text("x")

    def not_write_usr(self) -> None:
        Path("/usr/vmmswap-probe").write_text("x")

    def not_write_run(self) -> None:
        Path("/run/vmmswap-probe").write_text("x")

    def not_write_sockets(self) -> None:
        Path("/run/vmmswap/probe").write_text("x")

    def not_write_other_vm(self) -> None:
        Path("/var/lib/vmmswap/other/probe").write_text("x")

    def not_write_sysctl(self) -> None:
        Path("/proc/sys/kernel/hostname").write_text("x")

    def not_write_cgroup(self) -> None:
        Path("/sys/fs/cgroup/probe").mkdir()

    def not_disk(self) -> None:
        os.close(os.open("/dev/probe-disk", os.O_RDONLY))

    def not_mount(self) -> None:
        checked(libc.mount(b"/proc", b"/mnt", None, MS_BIND, None))

    def not_namespace(self) -> None:
        checked(libc.unshare(CLONE_NEWNS))

    def not_set_user_id_file(self) -> None:
        path = Path("/tmp/probe")
        path.write_text("x")
        path.chmod(0o4755)

    def not_writable_code(self) -> None:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()

    def not_other_user(self) -> None:
        os.setuid(65534)  # the last, as it would change what the others may do


def outcome(action: Callable[[], None]) -> str:
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except AssertionError as error:
        return f"AssertionError in line {error.__traceback__.tb_next.tb_lineno}"  # type: ignore[union-attr]
    return "ok"


def main() -> None:
    pid, addr, memfd, name = sys.argv[1:]
    probe = Probe(int(pid), int(addr), int(memfd), name)
    names = [name for name in vars(Probe) if not name.startswith("_")]
    print("OUTCOMES " + json.dumps({name: outcome(getattr(probe, name)) for name in names}), flush=True)


if __name__ == "__main__":
    main()
