# SPDX-License-Identifier: GPL-2.0-or-later
"""Other processes: their fds, their memory, and what /proc shows of them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
from pathlib import Path

_SYS_PIDFD_GETFD = 438
_SYS_KCMP = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine)
_KCMP_FILE = 0
_KCMP_VM = 1
_KCMP_FILES = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.process_vm_readv.restype = ctypes.c_ssize_t


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


def pidfd_getfd(pidfd: int, number: int) -> int:
    """A duplicate, close-on-exec, of another process's fd."""
    fd: int = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, number, 0)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"pidfd_getfd of fd {number}: {os.strerror(code)}")
    return fd


def is_same_file(pid: int, number: int, own_fd: int) -> bool:
    """True if fd `number` of process pid is a duplicate of our own fd."""
    return _is_same(pid, os.getpid(), _KCMP_FILE, number, own_fd)


def is_same_memory(pid: int, other: int) -> bool:
    """True if two processes share one address space, as a child of vfork() and its parent do."""
    return _is_same(pid, other, _KCMP_VM, 0, 0)


def is_same_fd_table(pid: int, other: int) -> bool:
    """True if two processes share one table of fds (CLONE_FILES)."""
    return _is_same(pid, other, _KCMP_FILES, 0, 0)


def _is_same(pid: int, other: int, what: int, idx: int, other_idx: int) -> bool:
    if _SYS_KCMP is None:
        raise OSError(errno.ENOSYS, f"no kcmp number known for {os.uname().machine}")
    order: int = _libc.syscall(_SYS_KCMP, pid, other, what, idx, other_idx)
    if order < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"kcmp of processes {pid} and {other}: {os.strerror(code)}")
    return order == 0


def read_memory(pid: int, addr: int, size_bytes: int) -> bytes:
    """All of it, or OSError. Not through /proc/PID/mem, which only the target's uid may open."""
    buffer = ctypes.create_string_buffer(size_bytes)
    here, there = Iovec(ctypes.addressof(buffer), size_bytes), Iovec(addr, size_bytes)
    done = _libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"memory of process {pid} at {addr:#x}: {os.strerror(code)}")
    if done != size_bytes:
        raise OSError(errno.EFAULT, f"only {done} of {size_bytes} bytes of process {pid} are at {addr:#x}")
    return buffer.raw


def is_alive(pidfd: int) -> bool:
    """True unless the process of a pidfd has ended, as a zombie has: the pidfd is readable then."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return not poller.poll(0)


def status_of(pid: int, tid: int | None = None) -> dict[str, str]:
    """/proc/PID/status, or that of one of its threads. FileNotFoundError or ProcessLookupError if it has
    ended, PermissionError if it is hidden. The kernel escapes what would end a line in the Name.
    """
    path = Path(f"/proc/{pid}/status" if tid is None else f"/proc/{pid}/task/{tid}/status")
    lines = path.read_text(errors="replace").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def thread_of_number(pid: int, number: int) -> int | None:
    """The thread that has this number in the process's own pid namespace; the newest if several had it."""
    for tid in reversed(thread_ids(pid)):
        with contextlib.suppress(OSError):
            if status_of(pid, tid).get("NSpid", str(tid)).split()[-1] == str(number):
                return tid
    return None


def thread_ids(pid: int) -> list[int]:
    """All threads. FileNotFoundError or ProcessLookupError if the process has ended."""
    return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
