# SPDX-License-Identifier: GPL-2.0-or-later
"""Hold all of a process still while one of its threads has something open that the others must not get.

Who could take an fd of a process while it is open there: its threads and all processes that share its memory
or its fd table, which are stopped here; and each other process that may trace it (pidfd_getfd()), so that the
process is not dumpable meanwhile. What cannot be stopped are the kernel's own threads for its io_uring.

Whoever is stopped is seized, so that all run on if we die.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vmmswap.attach.target import Target, thread_ids
from vmmswap.errors import BusyError
from vmmswap.linux import ptrace
from vmmswap.linux.process import is_same_fd_table, is_same_memory
from vmmswap.linux.ptrace import PTRACE_EVENT_STOP

_STOP_S = 2.0  # for all threads to stop
_MAX_ROUNDS = 16  # of looking for threads that were made meanwhile
_KERNELS = ("iou-", "vhost-")  # names of threads that run in the kernel alone and cannot be traced


@contextmanager
def held_still(target: Target, working_tid: int) -> Iterator[None]:
    """All threads but the working one, which is traced by us already. From the thread that traces it.

    BusyError if one does not stop, or new ones keep coming; all run on then.
    """
    held: dict[int, bool] = {}
    with ExitStack() as undo:
        undo.callback(_release, held)
        deadline_s = time.monotonic() + _STOP_S
        for _ in range(_MAX_ROUNDS):
            new = [tid for tid in _all_threads(target.pid) if tid != working_tid and tid not in held]
            if not new:
                break
            for tid in new:
                held[tid] = _seize(target.pid, tid)
            for tid in (tid for tid in new if held[tid]):
                if not _wait_stopped(tid, deadline_s):
                    raise BusyError(f"{target}: its thread {tid} does not stop: try again")
        else:
            raise BusyError(f"{target}: it keeps making threads: try again")
        yield


def _all_threads(pid: int) -> list[int]:
    return [tid for one in (pid, *_sharers(pid)) for tid in thread_ids(one)]


def _sharers(pid: int) -> list[int]:
    """Other processes with the same memory or fd table (clone(2)), which have their threads elsewhere."""
    others = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return [other for other in others if other != pid and _shares(pid, other)]


def _shares(pid: int, other: int) -> bool:
    return any(_ask(question, pid, other) for question in (is_same_memory, is_same_fd_table))


def _ask(question: Callable[[int, int], bool], pid: int, other: int) -> bool:
    try:
        return question(pid, other)
    except OSError:
        return False  # one of them has ended, or is a kernel thread


def _seize(pid: int, tid: int) -> bool:
    """False: it has ended, or cannot be traced and runs no code of the process."""
    try:
        ptrace.request(ptrace.PTRACE_SEIZE, tid)
        ptrace.request(ptrace.PTRACE_INTERRUPT, tid)
    except ProcessLookupError:
        return False
    except PermissionError:
        if _name_of(pid, tid).startswith(_KERNELS):
            return False
        raise BusyError(f"thread {tid} of process {pid} cannot be stopped: is it being traced?") from None
    return True


def _wait_stopped(tid: int, deadline_s: float) -> bool:
    try:
        while (stop := ptrace.wait_stop(tid, deadline_s)) is not None:
            if stop.event == PTRACE_EVENT_STOP:
                return True
            ptrace.request(ptrace.PTRACE_CONT, tid, 0, stop.signal if stop.event == 0 else 0)
    except ProcessLookupError:
        return True  # it has ended
    return False


def _release(held: dict[int, bool]) -> None:
    for tid in (tid for tid, is_ours in held.items() if is_ours):
        with suppress(OSError):  # it has ended, or does not stop: the end of our thread lets it go
            ptrace.request(ptrace.PTRACE_DETACH, tid)


def _name_of(pid: int, tid: int) -> str:
    """The kernel's threads have names that the process cannot give them."""
    try:
        return Path(f"/proc/{pid}/task/{tid}/comm").read_text(errors="replace")
    except OSError:
        return ""
