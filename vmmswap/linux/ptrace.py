# SPDX-License-Identifier: GPL-2.0-or-later
"""The ptrace requests that python-ptrace does not have. Each raises OSError."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import time
from dataclasses import dataclass

from vmmswap.linux.process import Iovec

PTRACE_PEEKDATA = 2
PTRACE_CONT = 7
PTRACE_DETACH = 17
PTRACE_SYSCALL = 24
PTRACE_SETOPTIONS = 0x4200
PTRACE_GETSIGINFO = 0x4202
PTRACE_GETREGSET = 0x4204
PTRACE_SETREGSET = 0x4205
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_GETSIGMASK = 0x420A
PTRACE_SETSIGMASK = 0x420B
PTRACE_SECCOMP_GET_FILTER = 0x420C

PTRACE_O_TRACESYSGOOD = 1
PTRACE_O_SUSPEND_SECCOMP = 1 << 21
PTRACE_EVENT_STOP = 128
SYSCALL_STOP = signal.SIGTRAP | 0x80

_WALL = 0x40000000
_WNOTHREAD = 0x20000000
_PR_SET_TIMERSLACK = 29
_SIGINFO_BYTES = 128
SIGMASK_BYTES = 8
_WORD = struct.Struct("<q")
_WORD_MASK = (1 << 64) - 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def request(kind: int, tid: int, addr: int = 0, data: int = 0) -> int:
    done: int = _libc.ptrace(kind, tid, addr, data & _WORD_MASK)
    if done == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace({kind:#x}) of thread {tid}: {os.strerror(code)}")
    return done


def get_regset(tid: int, kind: int, limit_bytes: int) -> bytes:
    """A set of registers (NT_*)."""
    buffer = ctypes.create_string_buffer(limit_bytes)
    vector = Iovec(ctypes.addressof(buffer), limit_bytes)
    request(PTRACE_GETREGSET, tid, kind, ctypes.addressof(vector))
    return buffer.raw[: vector.len]


def set_regset(tid: int, kind: int, values: bytes) -> None:
    buffer = ctypes.create_string_buffer(values, len(values))
    vector = Iovec(ctypes.addressof(buffer), len(values))
    request(PTRACE_SETREGSET, tid, kind, ctypes.addressof(vector))


def get_sigmask(tid: int) -> int:
    """The signals that the thread blocks, one bit each: bit 0 is signal 1."""
    mask = ctypes.c_uint64()
    request(PTRACE_GETSIGMASK, tid, SIGMASK_BYTES, ctypes.addressof(mask))
    return mask.value


def set_sigmask(tid: int, mask: int) -> None:
    value = ctypes.c_uint64(mask)
    request(PTRACE_SETSIGMASK, tid, SIGMASK_BYTES, ctypes.addressof(value))


def is_own_fault(tid: int) -> bool:
    """True if the kernel sent the thread's current signal because of what the thread did."""
    info = (ctypes.c_int32 * (_SIGINFO_BYTES // 4))()
    request(PTRACE_GETSIGINFO, tid, 0, ctypes.addressof(info))
    return info[2] > 0  # si_code


@dataclass(frozen=True, slots=True)
class Stop:
    """code: the signal, or signal | PTRACE_EVENT_* << 8."""

    code: int

    @property
    def event(self) -> int:
        return self.code >> 8

    @property
    def signal(self) -> int:
        return self.code & 0xFF


def look_at_stop(tid: int) -> Stop | None:
    """How a tracee of this thread stands still, None while it runs. ProcessLookupError once it has ended.

    The stop is not reaped: that would clear the signal that the kernel keeps for the thread, and if we then
    died, the thread would go on without it.
    """
    options = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT | _WALL | _WNOTHREAD
    try:
        found = os.waitid(os.P_PID, tid, options)
    except ChildProcessError:
        raise ProcessLookupError(errno.ESRCH, f"thread {tid} is no longer traced by us") from None
    if found is None:
        return None
    if found.si_code in (os.CLD_TRAPPED, os.CLD_STOPPED):
        return Stop(found.si_status)
    raise ProcessLookupError(errno.ESRCH, f"thread {tid} has ended")


def nap_exactly() -> None:
    """From here on the naps of this OS thread end in time: by itself the kernel adds 50 us to each."""
    _libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def wait_stop(tid: int, deadline_s: float) -> Stop | None:
    """Its next stop, None at the deadline. The kernel has no such wait: short naps, which double."""
    nap_s = 5e-6
    while True:
        stop = look_at_stop(tid)
        if stop is not None or time.monotonic() > deadline_s:
            return stop
        time.sleep(nap_s)
        nap_s = min(2 * nap_s, 1e-3)


def peek(tid: int, addr: int, size_bytes: int) -> bytes:
    """Memory of a tracee that stands still: of no other process, whatever has that number by now."""
    words = [_peek_word(tid, addr + done) for done in range(0, size_bytes, _WORD.size)]
    return b"".join(words)[:size_bytes]


def _peek_word(tid: int, addr: int) -> bytes:
    ctypes.set_errno(0)  # the C library returns the word itself
    word: int = _libc.ptrace(PTRACE_PEEKDATA, tid, addr, None)
    if word == -1 and (code := ctypes.get_errno()):
        raise OSError(code, f"memory of thread {tid} at {addr:#x}: {os.strerror(code)}")
    return _WORD.pack(word)
