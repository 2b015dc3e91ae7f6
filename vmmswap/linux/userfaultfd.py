# SPDX-License-Identifier: GPL-2.0-or-later
"""The userfaultfd calls of the Python side: open one, give it its features, register a page, ask about it.

All that serves faults is the engine's.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import fcntl
import functools
import mmap
import os
import struct
from pathlib import Path

from vmmswap.errors import AccessDeniedError, NotSupportedError, ProtocolError

_API_VERSION = 0xAA
_UFFDIO_API = 0xC018AA3F  # struct uffdio_api: api, features, ioctls
_UFFDIO_REGISTER = 0xC020AA00  # struct uffdio_register: start, len, mode, ioctls
_UFFDIO_UNREGISTER = 0x8010AA01  # struct uffdio_range: start, len
_UFFDIO_WAKE = 0x8010AA02
_UFFDIO_COPY = 0xC028AA03  # struct uffdio_copy: dst, src, len, mode, copy
_UFFDIO_ZEROPAGE = 0xC020AA04  # struct uffdio_zeropage: start, len, mode, zeropage
_USERFAULTFD_IOC_NEW = 0xAA00
_REGISTER_MODE_MISSING = 1
_REGISTER_MODE_MINOR = 4
_USER_MODE_ONLY = 1
_INITIALISED = 1 << 31  # fdinfo's mark that UFFDIO_API is done; no feature
_SYSCALL = {"x86_64": 323, "aarch64": 282}
_PROT_NONE = 0
_NOWHERE = 0x10000  # vm.mmap_min_addr's default: hardly anything is mapped there, and no guest memory
_DEVICE = Path("/dev/userfaultfd")

_libc = ctypes.CDLL(None, use_errno=True)


class Feature(enum.IntFlag, boundary=enum.KEEP):
    """Features of a userfaultfd by their kernel names."""

    PAGEFAULT_FLAG_WP = 1 << 0
    EVENT_FORK = 1 << 1
    EVENT_REMAP = 1 << 2
    EVENT_REMOVE = 1 << 3
    MISSING_SHMEM = 1 << 5
    EVENT_UNMAP = 1 << 6
    SIGBUS = 1 << 7
    WP_HUGETLBFS_SHMEM = 1 << 12
    POISON = 1 << 14
    WP_ASYNC = 1 << 15
    MOVE = 1 << 16


# What the engine uses; never SIGBUS or WP_ASYNC, which take faults away from whoever serves them.
WANTED = (
    Feature.PAGEFAULT_FLAG_WP
    | Feature.EVENT_FORK
    | Feature.EVENT_REMOVE
    | Feature.MISSING_SHMEM
    | Feature.WP_HUGETLBFS_SHMEM
    | Feature.POISON
)


def _syscall(user_mode_only: bool) -> int:
    number = _SYSCALL.get(machine := os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"no userfaultfd number known for {machine}")
    flags = os.O_CLOEXEC | os.O_NONBLOCK | (_USER_MODE_ONLY if user_mode_only else 0)
    fd: int = _libc.syscall(number, flags)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    return fd


def open_userfaultfd(device: Path = _DEVICE) -> int:
    """A new userfaultfd of this process, for user and kernel mode, O_NONBLOCK and close-on-exec.

    UFFDIO_API is not done on it. The device node is tried first, then the system call.
    NotSupportedError or AccessDeniedError says which kernel option, device, sysctl or capability is missing.
    """
    try:
        node = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        device_error = error
    else:
        try:
            return fcntl.ioctl(node, _USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            device_error = error
        finally:
            os.close(node)
    try:
        return _syscall(user_mode_only=False)
    except OSError as error:
        raise _advice(device, device_error, error) from None


def _advice(device: Path, device_error: OSError, error: OSError) -> NotSupportedError | AccessDeniedError:
    if error.errno == errno.ENOSYS:
        return NotSupportedError("this kernel has no userfaultfd: it needs CONFIG_USERFAULTFD=y")
    if error.errno != errno.EPERM:
        return NotSupportedError(f"userfaultfd failed: {error.strerror or os.strerror(error.errno or 0)}")
    if device_error.errno in (errno.EACCES, errno.EPERM):
        node = f"{device} may not be opened (join the group vmmswap, which its udev rule names)"
    elif device_error.errno == errno.ENOENT:
        node = f"{device} does not exist (Linux 6.1 and newer have it)"
    else:
        node = f"{device}: {os.strerror(device_error.errno or 0)}"
    return AccessDeniedError(
        f"no userfaultfd for this process: {node}, and the system call needs CAP_SYS_PTRACE or the sysctl"
        " vm.unprivileged_userfaultfd=1"
    )


def open_user_mode_only() -> int:
    """A userfaultfd that any process may have, for user-mode faults only: of no use for a guest."""
    return _syscall(user_mode_only=True)


def api(uffd: int, features: int) -> Feature:
    """UFFDIO_API: initialises the uffd with these features and returns all that the kernel has.

    Raises OSError: EINVAL if it was initialised before or the kernel lacks a feature, EPERM if EVENT_FORK is
    not allowed. After an error the uffd is as it was.
    """
    arg = bytearray(struct.pack("QQQ", _API_VERSION, features, 0))
    fcntl.ioctl(uffd, _UFFDIO_API, arg)
    return Feature(struct.unpack("QQQ", arg)[1])


def kernel_features() -> Feature:
    """What this kernel offers, asked of a throw-away uffd, because asking initialises."""
    try:
        fd = open_user_mode_only()
    except OSError as error:
        raise NotSupportedError(f"no userfaultfd on this machine: {os.strerror(error.errno or 0)}") from None
    try:
        return api(fd, 0)
    finally:
        os.close(fd)


def is_userfaultfd(fd: int) -> bool:
    return str(Path(f"/proc/self/fd/{fd}").readlink()) == "anon_inode:[userfaultfd]"


def features_of(uffd: int) -> Feature | None:
    """The features that the uffd was initialised with, None if UFFDIO_API is not done.

    From fdinfo's API line.
    """
    for line in Path(f"/proc/self/fdinfo/{uffd}").read_text().splitlines():
        if line.startswith("API:"):
            bits = int(line.split(":")[2], 16)
            return Feature(bits & ~_INITIALISED) if bits else None
    raise ProtocolError("fds[0]: the kernel tells nothing about this userfaultfd in /proc/self/fdinfo")


def register_missing(uffd: int, addr: int, size_bytes: int) -> None:
    """UFFDIO_REGISTER for missing pages. Raises OSError."""
    _register(uffd, addr, size_bytes, _REGISTER_MODE_MISSING)


def register_shmem(uffd: int, addr: int, size_bytes: int) -> None:
    """UFFDIO_REGISTER for missing pages, and for those that only the file has: granted to shmem alone, and to
    all of the range or none (Linux fs/userfaultfd.c, vma_can_userfault()). Raises OSError.
    """
    _register(uffd, addr, size_bytes, _REGISTER_MODE_MISSING | _REGISTER_MODE_MINOR)


def _register(uffd: int, addr: int, size_bytes: int, mode: int) -> None:
    fcntl.ioctl(uffd, _UFFDIO_REGISTER, bytearray(struct.pack("QQQQ", addr, size_bytes, mode, 0)))


def unregister(uffd: int, addr: int, size_bytes: int) -> None:
    """UFFDIO_UNREGISTER, and UFFDIO_WAKE for waiters whose mapping is gone.

    Raises nothing: the process may be dead.
    """
    arg = struct.pack("QQ", addr, size_bytes)
    for request in (_UFFDIO_UNREGISTER, _UFFDIO_WAKE):
        try:
            fcntl.ioctl(uffd, request, arg)
        except OSError:
            continue  # nothing is registered any more, which is what we want


def is_gone(uffd: int) -> bool:
    """True if the address space of a userfaultfd is gone: its process has ended or called exec.

    Asked by a request that is refused otherwise (ENOENT: nothing is registered there).
    """
    try:
        fcntl.ioctl(uffd, _UFFDIO_ZEROPAGE, bytearray(struct.pack("QQQQ", _NOWHERE, mmap.PAGESIZE, 0, 0)))
    except OSError as error:
        return error.errno == errno.ESRCH
    return False


def is_registered(uffd: int, addr: int) -> bool | None:
    """Asked by a copy of what may not be read: the kernel looks whether the place is registered first. None
    if that cannot be told, as while an event of the process is unread.
    """
    request = bytearray(struct.pack("QQQQq", addr, _unreadable(), mmap.PAGESIZE, 0, 0))
    try:
        fcntl.ioctl(uffd, _UFFDIO_COPY, request)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            return False
        return True if error.errno in (errno.EFAULT, errno.EEXIST) else None
    return None


@functools.cache
def _unreadable() -> int:
    """The address of a page that nobody may read; not 0, which some kernels refuse before they look."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    addr: int = libc.mmap(None, mmap.PAGESIZE, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    return addr
