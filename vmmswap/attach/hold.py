# SPDX-License-Identifier: GPL-2.0-or-later
"""Holds one thread of a VMM by ptrace, so that nothing of ours can leave it stopped.

A thread is seized and interrupted (never by SIGSTOP, never with PTRACE_O_EXITKILL): whoever traces by SEIZE
and dies lets its tracee run on. All requests for a tracee must come from one OS thread; here that is one made
for the purpose, whose end releases whatever it still holds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from vmmswap.attach import arch as arch_module
from vmmswap.attach.frozen import check_not_frozen
from vmmswap.attach.gadgets import find_gadgets
from vmmswap.attach.memory import mappings_of
from vmmswap.attach.remote_call import HeldThread, Place, word_of_status
from vmmswap.attach.target import Target, thread_ids
from vmmswap.errors import AccessDeniedError, BusyError, InternalError, NotSupportedError, VmmswapError
from vmmswap.failpoint import reach
from vmmswap.linux import ptrace
from vmmswap.linux.access import check_thread
from vmmswap.linux.ptrace import PTRACE_EVENT_STOP

T = TypeVar("T")

_STOP_S = 2.0  # for one thread to stop; in the kernel's hands it may take long
_ALL_S = 60.0
_MAX_TRIES = 16


@dataclass(frozen=True, slots=True)
class _Choice:
    """takes_any: also a thread in user code. needs_guard: of its stack; see _is_guarded()."""

    takes_any: bool
    needs_guard: bool


_GUARDED = (_Choice(takes_any=False, needs_guard=True), _Choice(takes_any=True, needs_guard=True))
_UNGUARDED = (_Choice(takes_any=False, needs_guard=False), _Choice(takes_any=True, needs_guard=False))


def run(target: Target, work: Callable[[HeldThread], T], *, force: bool = False) -> T:
    """Hold a thread of the target, and give it to `work`, which runs on an OS thread of its own.

    Raises what `work` raises, and VmmswapError if no thread can be held. Blocks for up to _ALL_S.
    """
    check_not_frozen(target.pid, str(target))
    result: _Result[T] = _Result()

    def tracer() -> None:
        ptrace.nap_exactly()
        try:
            result.value = _hold_and_work(target, work, force)
        except BaseException as error:
            result.error = error

    thread = threading.Thread(target=tracer, name="attach", daemon=True)
    thread.start()
    thread.join(_ALL_S)
    if thread.is_alive():
        raise BusyError(f"{target}: it cannot be traced, because something in it hangs in the kernel")
    _wait_gone(thread.native_id)
    if result.error is not None:
        raise result.error
    if result.value is None:
        raise InternalError("attach: the work had no result")
    return result.value


def _wait_gone(tid: int | None) -> None:
    """Wait until the kernel has released what our OS thread held: join() returns just before its end."""
    deadline = time.monotonic() + _STOP_S
    while Path(f"/proc/self/task/{tid}").exists() and time.monotonic() < deadline:
        time.sleep(20e-6)


class _Result(Generic[T]):
    value: T | None = None
    error: BaseException | None = None


def _hold_and_work(target: Target, work: Callable[[HeldThread], T], force: bool) -> T:
    arch = arch_module.current()
    mappings = mappings_of(target.pid)
    place = Place(target, arch, find_gadgets(target, arch, mappings), force)
    with _held(place) as thread:
        return work(thread)


@contextmanager
def _held(place: Place) -> Iterator[HeldThread]:
    thread = _hold_one(place)
    try:
        yield thread
    except BaseException:
        # The thread may have ended, or be stuck in a call: the end of this OS thread lets it go.
        with suppress(OSError):
            thread.release()
        raise
    thread.release()


def _hold_one(place: Place) -> HeldThread:
    """A thread that stands in a system call if there is one: in user code it may be in a restartable sequence
    (rseq), which must not see registers change. One that waits so that nobody notices comes first, one in an
    ioctl (which may be a vCPU) late.
    """
    problems: list[str] = []
    stuck: set[int] = set()  # seized, and yet to stop or to be gone
    first = place.target.pid  # of its stack it is known that it ends in a guard
    own = [tid for tid in thread_ids(first) if not is_planted(first, tid)]
    ranked = sorted(own, key=lambda tid: _rank(place, tid))
    ranked = ranked[:_MAX_TRIES] + [tid for tid in ranked[_MAX_TRIES:] if tid == first]
    for choice in (*_GUARDED, *(_UNGUARDED if place.force else ())):
        for tid in (tid for tid in ranked if tid not in stuck):
            thread = _try(place, tid, choice, problems, stuck)
            if thread is not None:
                return thread
    check_not_frozen(place.target.pid, str(place.target))
    raise BusyError(f"{place.target}: no thread of it can be held: {'; '.join(problems) or 'it has ended'}")


def is_planted(pid: int, tid: int) -> bool:
    """True if it moves private memory for a monitor, by its name: its small stack is for that alone."""
    try:
        return Path(f"/proc/{pid}/task/{tid}/comm").read_bytes() == b"vmmswap\n"
    except OSError:
        return False


def _rank(place: Place, tid: int) -> int:
    try:
        text = Path(f"/proc/{place.target.pid}/task/{tid}/syscall").read_text().split()[0]
    except (OSError, IndexError):
        return 4
    if not text.isdigit():
        return 3  # it runs
    if int(text) in place.arch.gentle:
        return 0
    return 2 if int(text) == place.arch.ioctl else 1


def _try(place: Place, tid: int, choice: _Choice, problems: list[str], stuck: set[int]) -> HeldThread | None:
    """None: not this thread, which runs on."""
    try:
        if not _stop(place, tid):
            problems.append(f"thread {tid} does not stop")
            stuck.add(tid)
            return None
        thread = HeldThread(place, tid)
        try:
            thread.check()
            check_thread(place.target.pid, tid, place.target.user)  # it can no longer change
            if choice.takes_any or thread.is_in_syscall():
                if thread.prepare(mappings_of(place.target.pid), needs_guard=choice.needs_guard):
                    return thread
                problems.append(f"thread {tid} has no room on its stack, or no guard below it")
        except BaseException:
            with suppress(OSError):
                thread.release()
            raise
        thread.release()
    except ProcessLookupError:
        problems.append(f"thread {tid} has ended")
        stuck.add(tid)
    return None


def _stop(place: Place, tid: int) -> bool:
    try:
        ptrace.request(ptrace.PTRACE_SEIZE, tid, 0, ptrace.PTRACE_O_TRACESYSGOOD)
    except PermissionError:
        raise _not_permitted(place.target, tid) from None
    reach("seized")
    ptrace.request(ptrace.PTRACE_INTERRUPT, tid)
    reach("interrupted")
    deadline = time.monotonic() + _STOP_S
    while (stop := ptrace.wait_stop(tid, deadline)) is not None:
        if stop.event == PTRACE_EVENT_STOP:
            reach("stopped")
            return True
        ptrace.request(ptrace.PTRACE_CONT, tid, 0, stop.signal if stop.event == 0 else 0)
    return False


def _not_permitted(target: Target, tid: int) -> VmmswapError:
    with suppress(OSError):
        if tracer := int(word_of_status(target.pid, tid, "TracerPid")):
            return NotSupportedError(
                f"{target} is traced already, by process {tracer}: end that debugger, then try again"
            )
    return AccessDeniedError(
        f"{target} may not be traced: run the monitor as root or with CAP_SYS_PTRACE; a security module"
        f" (AppArmor,"
        " SELinux, Yama) may forbid it too"
    )
