# SPDX-License-Identifier: GPL-2.0-or-later
"""The thread that moves a VMM's private memory (engine/planted/), made in a VMM that does not know of it.

What the VMM gets: an area with the thread's code, its stack and scratch; the mailbox; a userfaultfd for
scratch. All of it is idle until the thread is made, which is the last step. The thread never runs code of the
VMM: clone() returns to a stack of its own that leads into ours, whether or not we live to see it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from vmmswap.attach.mailbox import Mailbox, Planting
from vmmswap.attach.memory import QEMU_ADVICE
from vmmswap.attach.remote_call import CallRefusedError, HeldThread
from vmmswap.attach.target import Target
from vmmswap.engine.native import ffi, lib
from vmmswap.errors import (
    AccessDeniedError,
    BusyError,
    InternalError,
    NotSupportedError,
    VmmswapError,
)
from vmmswap.failpoint import reach
from vmmswap.handoff import private
from vmmswap.linux import userfaultfd
from vmmswap.linux.process import is_alive, is_same_file, pidfd_getfd, thread_of_number
from vmmswap.linux.userfaultfd import Feature

Span = tuple[int, int]  # address, bytes

_PROT_NONE = 0
_MAP_NORESERVE = 0x4000
_MADV_DONTNEED, _MADV_DONTFORK = 4, 10
_MFD_CLOEXEC, _MFD_ALLOW_SEALING = 1, 2
_AT_FDCWD = -100
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
_PR_SET_NAME = 15
_UFFDIO_MOVE = 0xC028AA05
_USER_MODE_ONLY = 1
_NEW_UFFD = os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY

# As pthread_create() makes threads: QEMU's filter (`spawn=deny`) lets no other clone() pass.
_CLONE_FLAGS = (
    0x00000100  # VM
    | 0x00000200  # FS
    | 0x00000400  # FILES
    | 0x00000800  # SIGHAND
    | 0x00010000  # THREAD
    | 0x00040000  # SYSVSEM
    | 0x00080000  # SETTLS
    | 0x00100000  # PARENT_SETTID
    | 0x00200000  # CHILD_CLEARTID: the mailbox has 0 once the thread has ended
)

# The area: between two pages that nobody may touch, so that the kernel joins it with nothing, there are code
# and the thread's view of it all, which are not writable; a stack; a page for what the C library would keep
# there (the thread uses none of it); and scratch.
_GUARD_BYTES = mmap.PAGESIZE
_CODE_BYTES = mmap.PAGESIZE
_VIEW_BYTES = 2 * mmap.PAGESIZE
_STACK_BYTES = 8 * mmap.PAGESIZE
_TLS_BYTES = mmap.PAGESIZE
_HEAD_BYTES = _GUARD_BYTES + _CODE_BYTES + _VIEW_BYTES + _STACK_BYTES + _TLS_BYTES
_LEAVE_S = 5.0
_LOOK_AGAIN_S = 0.001


@dataclass(frozen=True, slots=True)
class PlantedMover:
    """mailbox, pagemap: our fds of the VMM's. lock: of the mailbox's file, see is_locked()."""

    planting: Planting
    mailbox: int
    pagemap: int
    lock: int


def check_machine() -> None:
    """NotSupportedError where no thread can be planted."""
    if not lib.vmmswap_planted_code_bytes:
        raise NotSupportedError(
            "the guest's memory is private, and attach takes that over on x86-64 only, not on"
            f" {os.uname().machine}: give the guest shared memory. {QEMU_ADVICE}"
        )
    if Feature.MOVE not in userfaultfd.kernel_features():
        raise NotSupportedError(
            "the guest's memory is private, and this kernel cannot move it (UFFDIO_MOVE, Linux 6.8): give the"
            f" guest shared memory. {QEMU_ADVICE}"
        )


def plant_mover(thread: HeldThread, spans: Sequence[Span]) -> PlantedMover:
    """Make all of it. OSError, CallRefusedError or VmmswapError; nothing is left in the VMM then. spans:
    guest memory.
    """
    _check_calls(thread)
    with ExitStack() as undo, ExitStack() as ours:
        area_addr, area_bytes = _make_area(thread, undo)
        mailbox_addr, mailbox_number, mailbox = _make_mailbox(thread, undo, ours)
        ours.callback(os.close, lock := _locked(mailbox))
        uffd_number = thread.call("userfaultfd", _NEW_UFFD)
        undo.callback(_quietly, thread, "close", uffd_number)
        scratch_addr = _scratch_of(area_addr)
        planting = Planting(area_addr, area_bytes, mailbox_addr, mailbox_number, uffd_number)
        with Mailbox(mailbox) as view:
            view.record(planting)
            view.box.scratch_addr = scratch_addr
            view.box.magic = lib.VMMSWAP_MAILBOX_MAGIC
        _register_scratch(thread, uffd_number, scratch_addr)  # whoever sees that finds the record
        reach("registered")
        pagemap = _open_pagemap(thread)
        ours.callback(os.close, pagemap)
        _write_area(thread, planting, spans)
        reach("planted")
        try:
            number = _start(thread, planting)
        except BaseException:
            if not _end_what_began(thread.target, mailbox):
                undo.pop_all()
            raise
        ours.pop_all()
        undo.pop_all()
    reach("started")
    with Mailbox(mailbox) as view:
        view.box.tid = _our_number(thread.target.pid, number)
    return PlantedMover(planting, mailbox, pagemap, lock)


def _check_calls(thread: HeldThread) -> None:
    """What the thread itself will call must pass the filters that it inherits."""
    thread.check_allowed("clone", _CLONE_FLAGS)
    thread.check_allowed("rt_sigprocmask", 2)
    thread.check_allowed("prctl", _PR_SET_NAME)
    thread.check_allowed("futex", 0, _FUTEX_WAIT)
    thread.check_allowed("futex", 0, _FUTEX_WAKE)
    thread.check_allowed("ioctl", 0, _UFFDIO_MOVE)
    thread.check_allowed("madvise", 0, lib.VMMSWAP_WINDOW_BYTES, _MADV_DONTNEED)
    thread.check_allowed("exit", 0)


def _scratch_of(area_addr: int) -> int:
    window = int(lib.VMMSWAP_WINDOW_BYTES)
    return (area_addr + _HEAD_BYTES + window - 1) // window * window


def _make_area(thread: HeldThread, undo: ExitStack) -> Span:
    size_bytes = _HEAD_BYTES + int(lib.VMMSWAP_WINDOW_BYTES + lib.VMMSWAP_SCRATCH_BYTES) + _GUARD_BYTES
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    addr = thread.call("mmap", 0, size_bytes, _PROT_NONE, flags, -1, 0)
    undo.callback(_quietly, thread, "munmap", addr, size_bytes)
    thread.call("madvise", addr, size_bytes, _MADV_DONTFORK)
    code, stack = addr + _GUARD_BYTES, addr + _GUARD_BYTES + _CODE_BYTES + _VIEW_BYTES
    thread.call("mprotect", stack, addr + size_bytes - _GUARD_BYTES - stack, mmap.PROT_READ | mmap.PROT_WRITE)
    try:
        thread.call("mprotect", code, stack - code, mmap.PROT_READ | mmap.PROT_EXEC)
    except PermissionError:
        raise AccessDeniedError(
            f"{thread.target} may not run code that is not a file's, which the thread that moves its memory"
            " needs: its security module (SELinux: virt_use_execmem) forbids it. Give the guest shared memory"
        ) from None
    return addr, size_bytes


def _locked(mailbox: int) -> int:
    """An fd of its own, whose lock tells others who attach that we are at it."""
    own = os.open(f"/proc/self/fd/{mailbox}", os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return own


def _make_mailbox(thread: HeldThread, undo: ExitStack, ours: ExitStack) -> tuple[int, int, int]:
    """Where it is in the VMM, the VMM's fd, and ours. The VMM keeps its fd, which tells others who attach."""
    name = thread.scratch_addr
    thread.write(name, b"vmmswap mailbox\0")
    number = thread.call("memfd_create", name, _MFD_CLOEXEC | _MFD_ALLOW_SEALING)
    undo.callback(_quietly, thread, "close", number)
    fd = pidfd_getfd(thread.target.pidfd, number)
    ours.callback(os.close, fd)
    size_bytes = int(lib.VMMSWAP_MAILBOX_BYTES)
    os.ftruncate(fd, size_bytes)  # by us: each call of the thread's makes the VMM wait longer
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    private.check_mailbox(fd, str(thread.target))
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    addr = thread.call("mmap", 0, size_bytes, protection, mmap.MAP_SHARED, number, 0)
    undo.callback(_quietly, thread, "munmap", addr, size_bytes)
    thread.call("madvise", addr, size_bytes, _MADV_DONTFORK)
    return addr, number, fd


def _register_scratch(thread: HeldThread, number: int, scratch_addr: int) -> None:
    uffd = pidfd_getfd(thread.target.pidfd, number)
    try:
        userfaultfd.api(uffd, Feature(0))
        userfaultfd.register_missing(uffd, scratch_addr, int(lib.VMMSWAP_SCRATCH_BYTES))
    finally:
        os.close(uffd)


def _open_pagemap(thread: HeldThread) -> int:
    """Only the process's own uid may open it, whatever one's capabilities to trace."""
    target = thread.target
    with suppress(PermissionError):
        fd = os.open(f"/proc/{target.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        if is_alive(target.pidfd):
            return fd
        os.close(fd)
        raise NotSupportedError(f"{target} has ended")
    thread.write(thread.scratch_addr, b"/proc/self/pagemap".ljust(24, b"\0"))
    number = thread.call("openat", _AT_FDCWD, thread.scratch_addr, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fd = pidfd_getfd(target.pidfd, number)
    finally:
        _quietly(thread, "close", number)
    try:
        private.check_pagemap(fd, target.pid, str(target))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write_area(thread: HeldThread, planting: Planting, spans: Sequence[Span]) -> None:
    """Code and view are not writable for the VMM, but for us who trace it."""
    code = bytes(ffi.buffer(lib.vmmswap_planted_code, int(lib.vmmswap_planted_code_bytes)))
    thread.write(_code_of(planting), _words(code))
    _write_view(thread, planting, spans)
    thread.write(_stack_of(planting), struct.pack("<QQ", _code_of(planting), _view_of(planting)))


def _write_view(thread: HeldThread, planting: Planting, spans: Sequence[Span]) -> None:
    view = ffi.new("struct vmmswap_mover *")
    view.mailbox = ffi.cast("struct vmmswap_mailbox *", planting.mailbox_addr)
    view.scratch_addr = _scratch_of(planting.area_addr)
    view.uffd, view.ranges_n = planting.uffd, len(spans)
    for item, (addr, size_bytes) in zip(view.ranges, spans, strict=False):
        item.addr, item.size_bytes = addr, size_bytes
    used_bytes = ffi.offsetof("struct vmmswap_mover", "ranges", len(spans))
    thread.write(_view_of(planting), bytes(ffi.buffer(view, used_bytes)))


def _code_of(planting: Planting) -> int:
    return planting.area_addr + _GUARD_BYTES


def set_spans(thread: HeldThread, mailbox: int, spans: Sequence[Span]) -> bool:
    """Guest memory is here from now on. Nothing is being moved: the thread looks only when it is asked."""
    with Mailbox(mailbox) as view:
        planting = view.planting
    if planting is None:
        raise InternalError(f"{thread.target} was not given a thread that moves its memory")
    _write_view(thread, planting, spans)
    return True


def start_again(thread: HeldThread, mailbox: int, spans: Sequence[Span]) -> bool:
    """Start the thread anew, as it has ended: all else that was planted is still there. OSError,
    CallRefusedError or VmmswapError if it cannot be.
    """
    _check_calls(thread)
    with Mailbox(mailbox) as view:
        planting = view.planting
        if planting is None:
            raise InternalError(f"{thread.target} was not given a thread that moves its memory")
        _write_area(thread, planting, spans)
        _empty_free_places(thread, planting, list(view.box.windows))
        if view.box.state != lib.VMMSWAP_MAILBOX_ASKED:  # else who asked takes it back
            view.box.state = lib.VMMSWAP_MAILBOX_IDLE
        reach("planted")
        number = _start(thread, planting)
        reach("started")
        view.box.tid = _our_number(thread.target.pid, number)
    return True


def _empty_free_places(thread: HeldThread, planting: Planting, windows: Sequence[int]) -> None:
    """What the thread that ended could not empty. Where a window is recorded is what is not stored yet."""
    window_bytes = int(lib.VMMSWAP_WINDOW_BYTES)
    for place, window_addr in enumerate(windows):
        if not window_addr:
            addr = _scratch_of(planting.area_addr) + place * window_bytes
            thread.call("madvise", addr, window_bytes, _MADV_DONTNEED)


def _view_of(planting: Planting) -> int:
    return _code_of(planting) + _CODE_BYTES


def _stack_of(planting: Planting) -> int:
    """Where the thread's stack pointer is at first: at the entry's address and its argument."""
    return _view_of(planting) + _VIEW_BYTES + _STACK_BYTES - 32


def _words(data: bytes) -> bytes:
    return data.ljust((len(data) + 7) // 8 * 8, b"\0")


def _start(thread: HeldThread, planting: Planting) -> int:
    """The new thread's number in the VMM's pid namespace."""
    tid_addr = planting.mailbox_addr + ffi.offsetof("struct vmmswap_mailbox", "tid")
    tls_addr = planting.area_addr + _HEAD_BYTES - _TLS_BYTES
    return thread.call("clone", _CLONE_FLAGS, _stack_of(planting), tid_addr, tid_addr, tls_addr)


def _end_what_began(target: Target, mailbox: int) -> bool:
    """True if there is no thread: what we saw fail may have come after it was made."""
    with Mailbox(mailbox) as view:
        number = int(view.box.tid)  # the kernel's, before the thread exists
        if not number:
            return True
        try:
            view.box.tid = _our_number(target.pid, number)
            end_mover(target, mailbox)
        except (VmmswapError, OSError):
            return False
    return True


def _our_number(pid: int, number: int) -> int:
    """The VMM may have numbers of its own."""
    tid = thread_of_number(pid, number)
    if tid is None:
        raise InternalError(f"process {pid} has no thread {number}, which was just made")
    return tid


def _quietly(thread: HeldThread, name: str, *arguments: int) -> None:
    with suppress(OSError, CallRefusedError):
        thread.call(name, *arguments)


def end_mover(target: Target, mailbox: int) -> None:
    """End the thread. Nothing is moved any more. BusyError if it does not end."""
    with Mailbox(mailbox) as view:
        tid = int(view.box.tid)
        if not tid or not _has_thread(target.pid, tid):
            return
        view.ask_to_leave()
        reach("leaving")
        deadline_s = time.monotonic() + _LEAVE_S
        while _has_thread(target.pid, tid):
            if time.monotonic() > deadline_s:
                raise BusyError(
                    f"{target}: its thread {tid}, which moves pages, does not end: is it stopped?"
                )
            time.sleep(_LOOK_AGAIN_S)


def _has_thread(pid: int, tid: int) -> bool:
    return Path(f"/proc/{pid}/task/{tid}").exists()


def remove_planting(thread: HeldThread, mailbox: int) -> None:
    """Unmap and close in the VMM what plant_mover() made. The thread has ended. What is left if we are killed
    meanwhile is idle, and stays.
    """
    with Mailbox(mailbox) as view:
        planting = view.planting
        if planting is None:
            return
        is_scratchs = _unregister_scratch(thread.target, planting)
        view.forget()
    reach("removing")
    thread.call("munmap", planting.area_addr, planting.area_bytes)
    thread.call("munmap", planting.mailbox_addr, int(lib.VMMSWAP_MAILBOX_BYTES))
    if is_scratchs:
        thread.call("close", planting.uffd)
    if _is_fd_of(thread.target, planting.mailbox_fd, mailbox):
        thread.call("close", planting.mailbox_fd)


def _unregister_scratch(target: Target, planting: Planting) -> bool:
    """True if the VMM's fd of this number was what was made for scratch."""
    try:
        fd = pidfd_getfd(target.pidfd, planting.uffd)
    except OSError as error:
        if error.errno == errno.EBADF:
            return False
        raise
    try:
        addr = _scratch_of(planting.area_addr)
        is_scratchs = userfaultfd.is_userfaultfd(fd) and userfaultfd.is_registered(fd, addr) is True
        if is_scratchs:
            userfaultfd.unregister(fd, addr, int(lib.VMMSWAP_SCRATCH_BYTES))
        return is_scratchs
    finally:
        os.close(fd)


def _is_fd_of(target: Target, number: int, own_fd: int) -> bool:
    try:
        return is_same_file(target.pid, number, own_fd)
    except OSError:
        return False
