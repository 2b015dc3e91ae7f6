# SPDX-License-Identifier: GPL-2.0-or-later
"""A userfaultfd and a dummy page inside a VMM, made by the VMM itself on our behalf; and their removal.

The userfaultfd stays open in the VMM, so that it outlives us: a thread that meets a hole then waits, and
reads no zeros. A VMM without the right to userfaultfd(2) is handed an open /dev/userfaultfd instead, whose
ioctl needs none.
"""

from __future__ import annotations

import array
import errno
import mmap
import os
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from vmmswap.attach import hold
from vmmswap.attach.fd_table import fd_links
from vmmswap.attach.memory import QEMU_ADVICE, mappings_of
from vmmswap.attach.planting import PlantedMover, Span, end_mover, plant_mover, remove_planting
from vmmswap.attach.remote_call import CallRefusedError, HeldThread
from vmmswap.attach.still import held_still
from vmmswap.attach.target import Target
from vmmswap.errors import AccessDeniedError, NotSupportedError
from vmmswap.failpoint import DEVICE_STEP, reach
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.linux import userfaultfd
from vmmswap.linux.maps import REGISTERED_MISSING, flags_of_mappings
from vmmswap.linux.process import is_same_file, pidfd_getfd, status_of

_DEVICE = Path("/dev/userfaultfd")
_SYSCTL = Path("/proc/sys/vm/unprivileged_userfaultfd")
_IOC_NEW = 0xAA00
_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
_AF_UNIX = 1
_STREAM = int(socket.SOCK_STREAM) | os.O_CLOEXEC | os.O_NONBLOCK
_RECEIVE = 0x40000000 | int(socket.MSG_DONTWAIT)  # MSG_CMSG_CLOEXEC
_RIGHTS = struct.Struct("<QiiI4x")  # cmsg_len, cmsg_level, cmsg_type, the fd
_MESSAGE = struct.Struct("<QIxxxxQQQQI4x")  # name, length; iov, count; control, length; flags
_NO_ADDR = 0
_READ_WRITE = 0o6
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4
_DUMMY_PATH = "/dev/zero (deleted)"
_UFFD_LINK = "anon_inode:[userfaultfd]"


@dataclass(frozen=True, slots=True)
class Planted:
    """uffd: our duplicate. number: the VMM's own fd of it. how: for people. mover: of private memory."""

    uffd: int
    number: int
    dummy_page: int
    how: str
    mover: PlantedMover | None = None


def plant(target: Target, spans: Sequence[Span] = (), *, force: bool = False) -> Planted:
    """Make both. Blocks. VmmswapError if it cannot be done; nothing is left in the VMM then. spans: private
    guest memory, which gets a thread that moves it.
    """
    return hold.run(target, lambda thread: _plant(thread, spans), force=force)


def _plant(thread: HeldThread, spans: Sequence[Span]) -> Planted:
    with ExitStack() as undo:
        try:
            number, how = _make_uffd(thread)
            undo.callback(_quietly, thread, "close", number)
            dummy_page = _call(
                thread,
                "mmap",
                _NO_ADDR,
                PAGE_SIZE,
                mmap.PROT_READ | mmap.PROT_WRITE,
                mmap.MAP_SHARED | mmap.MAP_ANONYMOUS,  # private pages the kernel may merge into a huge one
                -1,
                0,
            )
            undo.callback(_quietly, thread, "munmap", dummy_page, PAGE_SIZE)
            uffd = pidfd_getfd(thread.target.pidfd, number)
            undo.callback(os.close, uffd)
            reach("fetched")
            mover = _plant_mover(thread, spans) if spans else None
        except CallRefusedError as refusal:
            raise NotSupportedError(
                f"{refusal}: without that call no userfaultfd can be made in it. With the option force the"
                " kernel skips the filter for such calls, if the monitor runs as root outside the unit"
            ) from None
        undo.pop_all()
    return Planted(uffd, number, dummy_page, how, mover)


def _plant_mover(thread: HeldThread, spans: Sequence[Span]) -> PlantedMover:
    try:
        return plant_mover(thread, spans)
    except CallRefusedError as refusal:
        raise NotSupportedError(
            f"{refusal}: without that call no thread can move its private memory. Give the guest shared"
            f" memory. {QEMU_ADVICE}"
        ) from None


def _call(thread: HeldThread, name: str, *arguments: int) -> int:
    try:
        return thread.call(name, *arguments)
    except OSError as error:
        raise NotSupportedError(str(error.strerror or error)) from None


def _quietly(thread: HeldThread, name: str, *arguments: int) -> None:
    """For what is undone: if it fails, an idle fd or page stays behind in the VMM, which harms nobody."""
    with suppress(OSError, CallRefusedError):
        thread.call(name, *arguments)


def _make_uffd(thread: HeldThread) -> tuple[int, str]:
    if thread.target.may_make_uffd or _is_for_everybody():
        try:
            return thread.call("userfaultfd", _FLAGS), "by userfaultfd(2)"
        except (OSError, CallRefusedError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS):
                raise
    if not (thread.target.user.is_root or may_open_device(thread.target.pid)):
        raise AccessDeniedError(
            f"{thread.target} would get a userfaultfd that stops the kernel's own accesses, and its user"
            " may not have one: add that user to the group vmmswap and restart the VMM, or attach as root"
        )
    how = f"from {_DEVICE}, passed to it"
    try:
        return _make_by_device(thread), how
    except CallRefusedError:
        if not thread.pass_over_filters():
            raise
    return _make_by_device(thread), f"{how} past its seccomp filter"


def _is_for_everybody() -> bool:
    try:
        return _SYSCTL.read_text().strip() == "1"
    except OSError:
        return False


def may_open_device(pid: int) -> bool:
    """True if a process may have userfaultfds by itself, by the mode of the device, which its udev rule sets.
    Whoever has that right only by an access control list counts as one without.
    """
    try:
        node = _DEVICE.stat()
        fields = status_of(pid)
    except OSError:
        return False
    uid = int(fields["Uid"].split()[1])
    gids = {int(fields["Gid"].split()[1]), *map(int, fields["Groups"].split())}
    if uid == node.st_uid:
        bits = node.st_mode >> 6
    elif os.listxattr(_DEVICE):  # the group's bits are the list's mask then
        bits = 0
    else:
        bits = node.st_mode >> 3 if node.st_gid in gids else node.st_mode
    return bits & _READ_WRITE == _READ_WRITE


def _make_by_device(thread: HeldThread) -> int:
    """The device is ours to open and not the VMM's to keep: all of it stands still, and nobody may look into
    it, until it is closed there. Where its user may open it anyway none of this is needed.
    """
    if may_open_device(thread.target.pid):
        return _make_in_the_open(thread)
    with held_still(thread.target, thread.tid), ExitStack() as undo:
        if _call(thread, "prctl", _PR_GET_DUMPABLE) == 1:
            _call(thread, "prctl", _PR_SET_DUMPABLE, 0)
            undo.callback(_quietly, thread, "prctl", _PR_SET_DUMPABLE, 1)
        return _make_in_the_open(thread)


def _make_in_the_open(thread: HeldThread) -> int:
    with ExitStack() as undo:
        device = _open_device()
        undo.callback(os.close, device)
        ends = thread.scratch_addr
        _call(thread, "socketpair", _AF_UNIX, _STREAM, 0, ends)
        near, far = struct.unpack("<ii", thread.read(ends, 8))
        undo.callback(_quietly, thread, "close", far)
        undo.callback(_quietly, thread, "close", near)
        with socket.socket(fileno=pidfd_getfd(thread.target.pidfd, near)) as ours:
            ours.sendmsg([b"u"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [device]))])
        number = _receive(thread, far)
        undo.callback(_quietly, thread, "close", number)
        reach(DEVICE_STEP)
        return _call(thread, "ioctl", number, _IOC_NEW, _FLAGS)


def _open_device() -> int:
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise AccessDeniedError(
            f"{_DEVICE}: {error.strerror}: it is needed for a VMM that may not call userfaultfd(2); Linux"
            f" 6.1 and"
            " newer have it, and the monitor must be allowed to open it"
        ) from None


def _receive(thread: HeldThread, far: int) -> int:
    """recvmsg of one byte and one fd in the VMM; the number that the fd got there."""
    vector = thread.scratch_addr + 16
    control = vector + 16
    message = control + _RIGHTS.size
    byte = message + _MESSAGE.size
    thread.write(vector, struct.pack("<QQ", byte, 1))
    thread.write(message, _MESSAGE.pack(0, 0, vector, 1, control, _RIGHTS.size, 0))
    _call(thread, "recvmsg", far, message, _RECEIVE)
    *_, control_bytes, flags = _MESSAGE.unpack(thread.read(message, _MESSAGE.size))
    _, level, kind, number = _RIGHTS.unpack(thread.read(control, _RIGHTS.size))
    if control_bytes == 0 or (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
        raise NotSupportedError(
            f"{thread.target} was not given {_DEVICE} (flags {flags:#x}): it has reached its limit of open"
            " files, or its security module (AppArmor, SELinux) forbids that device"
        )
    return int(number)


def idle(pid: int, uffd: int, dummy_page: int | None) -> list[int]:
    """Unregister the dummy page of a process, by its own userfaultfd; None: all single pages that one is
    registered for. The addresses.

    From here on nothing in the process waits for us. With the page registered and nobody to read of it,
    fork() would wait for ever.
    """
    pages = dummy_pages(pid) if dummy_page is None else [dummy_page]
    for page in pages:
        userfaultfd.unregister(uffd, page, PAGE_SIZE)
    return pages


def uproot(
    target: Target,
    uffds: Sequence[int],
    pages: Sequence[int],
    *,
    mailbox: int | None = None,
    force: bool = False,
) -> None:
    """Close these userfaultfds (duplicates of ours) in the VMM and unmap its dummy page: it is as before.
    mailbox: of a thread that moves its memory, which is ended.

    Blocks. Call it while nothing is registered. If it raises, what stays behind is idle.
    """
    numbers = [
        number
        for number, link in fd_links(target)
        if link == _UFFD_LINK and any(is_same_file(target.pid, number, uffd) for uffd in uffds)
    ]
    if mailbox is not None:
        end_mover(target, mailbox)
    if numbers or pages or mailbox is not None:
        hold.run(target, _uprooter(numbers, pages, mailbox), force=force)


def _uprooter(
    numbers: Sequence[int], pages: Sequence[int], mailbox: int | None
) -> Callable[[HeldThread], bool]:
    def work(thread: HeldThread) -> bool:
        try:
            if mailbox is not None:
                remove_planting(thread, mailbox)
            for page in pages:
                _call(thread, "munmap", page, PAGE_SIZE)
            for number in numbers:
                _call(thread, "close", number)
        except CallRefusedError as refusal:
            raise NotSupportedError(str(refusal)) from None
        return True

    return work


def dummy_pages(pid: int) -> list[int]:
    """A VM's that is served: single shared anonymous pages that a userfaultfd is registered for."""
    single = {
        mapping.start
        for mapping in mappings_of(pid)
        if mapping.path == _DUMMY_PATH and mapping.size_bytes == PAGE_SIZE and mapping.perms == "rw-s"
    }
    return [
        mapping.start
        for mapping, flags in flags_of_mappings(pid)
        if mapping.start in single and REGISTERED_MISSING in flags
    ]
