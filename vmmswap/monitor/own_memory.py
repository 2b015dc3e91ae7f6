# SPDX-License-Identifier: GPL-2.0-or-later
"""What the monitor itself takes of the memory that it is to free; there is one for each VM.

All of it is locked, the interpreter's part too. Page faults need only the engine's; but a fork is adopted, an
order accepted and the watchdog fed by the interpreter, and none of them may wait for a disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import re
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from vmmswap.later import asyncio
from vmmswap.linux.process import status_of

_log = logging.getLogger("vmmswap.service")

_CAP_IPC_LOCK = 14
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_MLOCK_ONFAULT = 1
_M_ARENA_MAX = -8  # malloc.h
_HEAP = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) .*\[heap\]$", re.MULTILINE)

_libc = ctypes.CDLL(None, use_errno=True)
_trimming = threading.Lock()
_start_bytes = _grown_bytes = _vm_bytes = 0


def use_one_arena() -> None:
    """Before there are threads: libc would give each of ours a heap of its own (mallopt(3))."""
    _libc.mallopt(_M_ARENA_MAX, 1)


def lock() -> None:
    """Never be swapped out while a guest waits for us. Only what is used counts (MCL_ONFAULT).

    Under a limit, what is mapped counts, used or not, and the page map is a very large sparse mapping: then
    not.
    """
    unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    if not unlimited and not _has_capability(_CAP_IPC_LOCK):
        _log.debug("RLIMIT_MEMLOCK is not unlimited; the monitor may be swapped out itself")
    elif _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        _log.debug("mlockall: %s; the monitor may be swapped out itself", os.strerror(ctypes.get_errno()))


@contextlib.contextmanager
def growing_with_the_vm() -> Iterator[None]:
    """What is allocated inside is not what a monitor without a VM takes."""
    global _vm_bytes  # noqa: PLW0603  of the process, as the memory is
    before = _taken_bytes()
    yield
    _vm_bytes = max(0, _taken_bytes() - before)


def settle() -> None:
    """Give back what importing and starting have left behind. What is there now stays: the collector need not
    look at it again, and it is what a monitor without a VM takes.
    """
    global _start_bytes  # noqa: PLW0603  of the process, as the memory is
    gc.collect()
    gc.freeze()
    _try_to_trim()
    _start_bytes = _taken_bytes() - _vm_bytes


def trim() -> None:
    """Give back what the heap no longer needs. Memory that is locked cannot be given back (madvise(2),
    MADV_DONTNEED), so the heap is unlocked meanwhile. Takes a millisecond, in which malloc() waits.
    """
    with _trimming, Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as maps:
        if not _has_locked():
            _libc.malloc_trim(0)
            return
        for start, end in _heap(maps):
            _libc.munlock(ctypes.c_void_p(start), ctypes.c_size_t(end - start))
        _libc.malloc_trim(0)
        for start, end in _heap(maps):
            if _libc.mlock2(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MLOCK_ONFAULT) != 0:
                reason = os.strerror(ctypes.get_errno())
                _log.warning("mlock2: %s; the monitor may be swapped out itself", reason)


def _try_to_trim() -> None:
    try:
        trim()
    except OSError as error:  # no fd left, say
        _log.debug("the heap is not trimmed: %s", error.strerror)


def trim_soon() -> None:
    """On a thread: a job has ended, and what it had allocated is free."""
    asyncio.get_running_loop().run_in_executor(None, _try_to_trim)


def grown_bytes() -> int:
    """How much more memory of its own this process has than after settle(), page tables included."""
    global _grown_bytes  # noqa: PLW0603  as above
    with contextlib.suppress(OSError):  # no fd left: what it was before must do
        _grown_bytes = max(0, _taken_bytes() - _start_bytes)
    return _grown_bytes


def _taken_bytes() -> int:
    """proc_pid_status(5) has both in kB. Memory of files is theirs, whoever maps it."""
    status = status_of(os.getpid())
    return sum(int(status[key].split()[0]) * 1024 for key in ("RssAnon", "VmPTE"))


def _heap(maps: TextIO) -> list[tuple[int, int]]:
    """The addresses of malloc()'s heap. What libc has added to it meanwhile may be a mapping of its own."""
    maps.seek(0)
    return [(int(start, 16), int(end, 16)) for start, end in _HEAP.findall(maps.read())]


def _has_locked() -> bool:
    return status_of(os.getpid())["VmLck"] != "0 kB"


def _has_capability(number: int) -> bool:
    return bool(int(status_of(os.getpid())["CapEff"], 16) >> number & 1)
