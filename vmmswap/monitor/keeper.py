# SPDX-License-Identifier: GPL-2.0-or-later
"""A second process that outlives a killed monitor for a moment, so that no userfaultfd is lost with it.

A forked child's userfaultfd exists nowhere but in the fd table of the process that read the FORK event. If
that is killed before it has stored the fd, the last reference goes, and the child reads zeros where memory is
out, as does the VMM after it: the zeros are in the shared memfd then. No order of steps in one process
closes this gap, as SIGKILL can come right after read(). So the keeper *shares* the monitor's fd table
(CLONE_FILES): what either opens is open in both, and closed when both are gone. It sleeps until the monitor
is dead, and then

- with an fd store sends there each userfaultfd that is not in it yet, and ends;
- without one becomes the monitor: it runs the same command again, with all that the dead one had of its VM,
  or with the message of one that was registering (pending.py).

systemd sends the signals of stop, restart and watchdog to the whole control group; the keeper ignores all
that can be ignored. Two things it does not survive: SIGKILL for the whole group in that instant, and that of
the out-of-memory killer with memory.oom.group.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import mmap
import os
import platform
import select
import signal
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from vmmswap.handoff import closing
from vmmswap.handoff.messages import PAGE_SIZE
from vmmswap.handoff.uffd_api import is_userfaultfd, register_shmem
from vmmswap.monitor.manifest import ProcessRecord
from vmmswap.notify import Notifier

MANIFEST = "manifest"  # nothing is kept of a VM that has none: it never was registered
MESSAGE = "message"  # a VM was registering that will not say so again
PIDFD = "pidfd-"
ORPHAN = "uffd-orphan-"

_KEPT = "VMMSWAP_KEPT_FDS"  # NAME=FD,NAME=FD,... for the successor that a keeper becomes
_LIVES = "VMMSWAP_KEPT_LIVES"  # how many successors in a row lived shortly
_SHORT_LIFE_S = 10.0
_LONGEST_WAIT_S = 10.0
_SPARE_FDS = 4  # a monitor may die when it has no fd left: to list its fds, and for a barrier

_CLONE_FILES = 0x400
_SYS_CLONE = {"x86_64": 56, "aarch64": 220}
_PR_SET_NAME = 15
_UFFDIO_COPY = 0xC028AA03  # struct uffdio_copy: dst, src, len, mode, copy
_PROT_NONE = 0
_LOOKS = 64  # at so many places of a range at most

_Part = tuple[int, int, int]  # address, page, pages

_ENTRIES = 8192
_ENTRY = struct.Struct("<B47siIQ")  # in use, name, fd or -1, nothing, inode
_FD, _FD_AT = struct.Struct("<i"), 48
_NO_FD = -1


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that a successor needs. fd: in our table; -1: the fd store has it, or has been sent it."""

    name: str
    fd: int
    inode: int


class Table:
    """What is kept, in memory that the keeper shares. An entry counts once its first byte says so."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _ENTRIES * _ENTRY.size)
        self._places: dict[str, int] = {}
        self._free = list(range(_ENTRIES - 1, -1, -1))

    def put(self, entry: Entry) -> None:
        self.drop(entry.name)
        if not self._free:
            return  # beyond what the fd store takes
        place = self._places[entry.name] = self._free.pop()
        at = place * _ENTRY.size
        _ENTRY.pack_into(self._memory, at, 0, entry.name.encode(), entry.fd, 0, entry.inode)
        self._memory[at] = 1

    def sent(self, name: str) -> None:
        """The entry has no fd any more."""
        place = self._places.get(name)
        if place is not None:
            _FD.pack_into(self._memory, place * _ENTRY.size + _FD_AT, _NO_FD)

    def drop(self, name: str) -> int:
        """Its fd, -1 for none."""
        place = self._places.pop(name, None)
        if place is None:
            return _NO_FD
        at = place * _ENTRY.size
        self._memory[at] = 0
        self._free.append(place)
        fd: int = _ENTRY.unpack_from(self._memory, at)[2]
        return fd

    def entries(self) -> list[Entry]:
        """All; in either process."""
        found = (_ENTRY.unpack_from(self._memory, place * _ENTRY.size) for place in range(_ENTRIES))
        return [Entry(name.rstrip(b"\0").decode(), fd, inode) for used, name, fd, _, inode in found if used]


class Keeper:
    """The monitor's side. manager: of the fd store; None: there is none."""

    def __init__(self, manager: Notifier | None) -> None:
        self._manager = manager
        self._table = Table()

    def start(self) -> int:
        """Its pid. Before any thread is started. OSError if there can be no such process."""
        spares = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(_SPARE_FDS)]
        return _clone(self._table, os.pidfd_open(os.getpid()), spares, self._manager)

    def keep(self, name: str, fd: int, *, unsent: int = _NO_FD) -> None:
        """The fd store has a duplicate, or will have one once `unsent`, which stays the caller's, is sent.
        Where there is no fd store, make a duplicate here.
        """
        own = unsent if self._manager else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        self.forget(name)
        self._table.put(Entry(name, own, os.fstat(fd).st_ino))

    def stored(self, name: str) -> None:
        """What was unsent has been sent."""
        self._table.sent(name)

    def forget(self, name: str) -> None:
        fd = self._table.drop(name)
        if fd >= 0 and not self._manager:
            closing.close(fd)

    def forget_all(self) -> None:
        for entry in self._table.entries():
            self.forget(entry.name)


def inherited() -> dict[str, int]:
    """For the successor that a keeper has become: what it keeps, by name. Only the first call gives it."""
    given = os.environ.pop(_KEPT, "")
    found: dict[str, int] = {}
    for item in filter(None, given.split(",")):
        name, _, fd = item.partition("=")
        found[name] = int(fd)
        os.set_inheritable(int(fd), False)
    return found


def take_orphans(kept: dict[str, int]) -> dict[str, int]:
    """Take the userfaultfds that a keeper stored out of `kept`. Not those that are there by another name too:
    they were stored when the monitor was killed before it could note it.
    """
    known = {os.fstat(fd).st_ino for name, fd in kept.items() if not name.startswith(ORPHAN)}
    names = [
        name for name, fd in kept.items() if name.startswith(ORPHAN) and os.fstat(fd).st_ino not in known
    ]
    return {name: kept.pop(name) for name in names}


def parent_of(uffd: int, processes: Iterable[ProcessRecord], *, is_private: bool) -> ProcessRecord | None:
    """The process that an orphan is a child of, with that part of its ranges that the child has: at its
    parent's addresses, and what its parent keeps from children (MADV_DONTFORK) is missing. None: it has
    ended, or is none of the VM's. is_private: of a snapshot's memory.
    """
    known = [item for item in processes if item.ranges]
    likest = max(known, key=lambda item: _likeness(uffd, item.ranges), default=None)
    candidates = [likest] if likest is not None and any(_likeness(uffd, likest.ranges)) else known
    for item in candidates:
        has = _may_be_registered if is_private else _has
        if ranges := tuple(part for part in item.ranges if has(uffd, part)):
            return replace(item, ranges=ranges)
    return None


def _likeness(uffd: int, ranges: Iterable[_Part]) -> tuple[int, int]:
    """How many pages are in ranges that look registered all over, and in others that do so in places: a
    child of another process may have something registered there, too.
    """
    whole = some = 0
    for part in ranges:
        looks = _looks(uffd, part)
        if all(looks):
            whole += part[2]
        elif any(looks):
            some += part[2]
    return whole, some


def _has(uffd: int, part: _Part) -> bool:
    """Whether guest memory can be there: it is registered from here on, if so. Nothing that is out may be
    touched unseen in between, so this must not unregister what it finds.
    """
    addr, _, pages = part
    try:
        register_shmem(uffd, addr, pages * PAGE_SIZE)
    except OSError:
        return _may_be_registered(uffd, part)  # a part is, and something else is there, too
    return True


def _may_be_registered(uffd: int, part: _Part) -> bool:
    """Also if that cannot be told: it must not be given up then."""
    return any(look is not False for look in _looks(uffd, part))


def _looks(uffd: int, part: _Part) -> list[bool | None]:
    addr, _, pages = part
    step = pages // _LOOKS + 1
    return [_is_registered(uffd, addr + page * PAGE_SIZE) for page in range(0, pages, step)]


def _is_registered(uffd: int, addr: int) -> bool | None:
    """Asked by a copy of what may not be read: the kernel looks whether the place is registered first. None
    if that cannot be told, as while an event of the process is unread.
    """
    request = bytearray(struct.pack("QQQQq", addr, _unreadable(), PAGE_SIZE, 0, 0))
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
    addr: int = libc.mmap(None, PAGE_SIZE, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    return addr


# In the keeper. It is a copy of the monitor as it was before it had threads.


def _clone(table: Table, pidfd: int, spares: Sequence[int], manager: Notifier | None) -> int:
    number = _SYS_CLONE.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"no number of clone() known for {platform.machine()}")
    libc = ctypes.PyDLL(None, use_errno=True)  # PyDLL keeps the GIL, which the copy then has too
    started_s = time.monotonic()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid: int = libc.syscall(number, _CLONE_FILES, None, None, None, None)
        if pid < 0:
            raise OSError(ctypes.get_errno(), "clone")
        if pid == 0:
            libc.prctl(_PR_SET_NAME, b"vmmswap-keeper", 0, 0, 0)
            _keep(table, pidfd, started_s, spares, manager)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _keep(
    table: Table, pidfd: int, started_s: float, spares: Sequence[int], manager: Notifier | None
) -> NoReturn:
    try:
        _ignore_signals()
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        while not poll.poll():
            pass
        for fd in spares:
            os.close(fd)
        kept = table.entries()
        names = {entry.name for entry in kept}
        if names & {MANIFEST, MESSAGE} and not _are_all_gone(kept):
            orphans = dict(_orphans(kept)) if MANIFEST in names else {}
            ours = {entry.name: entry.fd for entry in kept if entry.fd >= 0} | orphans
            if manager:
                _store(ours, manager)
            else:
                _succeed(ours, started_s)
    except BaseException as error:  # nobody is left to raise it to
        with contextlib.suppress(BaseException):
            print(f"vmmswap-keeper: {error!r}", file=sys.stderr, flush=True)
    os._exit(0)


def _are_all_gone(kept: Iterable[Entry]) -> bool:
    """Then there is nobody to serve: a successor would only find that out, or fail at something else."""
    pidfds = {entry.fd for entry in kept if entry.name.startswith(PIDFD) and entry.fd >= 0}
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    return bool(pidfds) and len(poll.poll(0)) == len(pidfds)


def _ignorable() -> Iterator[int]:
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGCONT):
            yield number


def _ignore_signals() -> None:
    for number in _ignorable():
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _orphans(kept: Iterable[Entry]) -> Iterator[tuple[str, int]]:
    """The userfaultfds of our table that nothing is known of, each file once. The dead monitor's are here."""
    known = {entry.inode for entry in kept}
    for fd in sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir()):
        try:
            inode = os.fstat(fd).st_ino
            if inode not in known and is_userfaultfd(fd):
                known.add(inode)
                yield f"{ORPHAN}{os.getpid()}-{fd}", fd
        except OSError:
            continue  # the fd that listed the directory


def _store(fds: Mapping[str, int], manager: Notifier) -> None:
    """The orphans, and what the monitor could not send any more. systemd must have taken them, and seen who
    sent them, before we are gone: if it stands still, so do we.
    """
    if not fds:
        return
    for name, fd in fds.items():
        with contextlib.suppress(OSError):
            manager.notify_now(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", [fd])
    reader, writer = os.pipe2(os.O_CLOEXEC)
    manager.notify_now("BARRIER=1", [writer])
    os.close(writer)
    poll = select.poll()
    poll.register(reader, 0)
    while not poll.poll():
        pass


def _succeed(kept: Mapping[str, int], started_s: float) -> NoReturn:
    """Become the monitor. One that died soon after its start may do so again: not at full speed."""
    lives = int(os.environ.get(_LIVES, "0")) + 1 if time.monotonic() - started_s < _SHORT_LIFE_S else 0
    if lives > 1:
        time.sleep(min(0.1 * 2**lives, _LONGEST_WAIT_S))
    for fd in kept.values():
        os.set_inheritable(fd, True)
    for number in _ignorable():
        signal.signal(number, signal.SIG_DFL)
    os.environ[_LIVES] = str(lives)
    os.environ[_KEPT] = ",".join(f"{name}={fd}" for name, fd in kept.items())
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell is wanted
