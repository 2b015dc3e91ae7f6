# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls that a held thread of a VMM makes for us.

What the thread runs on with is `arch`'s care. Signals are blocked in it while it works for us, and wait. Its
mask is part of what the way home restores; we set it after the registers and reset it before them, so that it
never stays behind.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmmswap.attach.arch import Architecture, Registers, WayHome
from vmmswap.attach.poke import poke
from vmmswap.attach.seccomp import Filters, read_filters
from vmmswap.attach.target import Target
from vmmswap.errors import InternalError, NotSupportedError
from vmmswap.failpoint import reach
from vmmswap.linux import ptrace
from vmmswap.linux.maps import Mapping
from vmmswap.linux.process import status_of
from vmmswap.linux.ptrace import SYSCALL_STOP

_CALL_S = 10.0
_OWN_FAULTS = (signal.SIGILL, signal.SIGTRAP, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV, signal.SIGSYS)
_BLOCKED = ~sum(1 << (number - 1) for number in _OWN_FAULTS) & ((1 << 64) - 1)
_WORD_MASK = (1 << 64) - 1
_SECCOMP_STRICT = "1"
_KNOWN_FILTERS = ("qemu-system-", "qemu-kvm", "kvm")  # they let pass all that we do
_DEADLY_FILTERS = ("virtiofsd",)  # they kill at what we do
_HARMLESS = ("close", (-1,))


class CallRefusedError(Exception):
    """A seccomp filter would not let a call pass, or has not."""


@dataclass(frozen=True, slots=True)
class Place:
    """What is the same for all threads of a target."""

    target: Target
    arch: Architecture
    gadgets: dict[str, int]
    force: bool


class HeldThread:
    """A thread that stands still and works for us."""

    def __init__(self, place: Place, tid: int) -> None:
        self.target = place.target
        self._place = place
        self._arch = place.arch
        self._tid = tid
        self._registers: Registers = place.arch.read(tid)
        self._sigmask = 0
        self._home: WayHome | None = None
        self._has_seccomp = False
        self._filters: Filters | None = None
        self._passes_over = False  # filters, where they forbid a call
        self._called = False  # the registers are ours
        self._is_entering = False  # a call of ours, not made yet
        self._masked = False
        self._pending = 0  # a signal that could not be blocked, for the end

    @property
    def tid(self) -> int:
        return self._tid

    @property
    def scratch_addr(self) -> int:
        """Memory of the thread for arguments, SCRATCH_BYTES long."""
        assert self._home is not None  # noqa: S101  (prepare() is the first thing that is called)
        return self._home.scratch_addr

    def check(self) -> None:
        self._arch.check(self._registers)

    def is_in_syscall(self) -> bool:
        return self._arch.is_in_syscall(self._tid, self._registers)

    def prepare(self, mappings: Sequence[Mapping], *, needs_guard: bool) -> bool:
        """Write the way home below the thread's stack. False: there is no room, or no guard."""
        self._sigmask = ptrace.get_sigmask(self._tid)
        home = self._arch.way_home(
            self._registers, self._arch.extended(self._tid), self._sigmask, self._place.gadgets
        )
        top = self._arch.stack_addr(self._registers)
        stack = next(
            (
                mapping
                for mapping in mappings
                if mapping.start <= home.addr and top <= mapping.end and mapping.perms[:2] == "rw"
            ),
            None,
        )
        if stack is None or (needs_guard and not _is_guarded(stack, mappings)):
            return False
        self._read_filters()
        poke(self._tid, home.addr, home.data)
        self._home = home
        reach("frame")
        return True

    def _read_filters(self) -> None:
        mode = word_of_status(self.target.pid, self._tid, "Seccomp")
        if mode == _SECCOMP_STRICT:
            raise NotSupportedError(
                f"{self.target} has strict seccomp (thread {self._tid}): any system call made on its behalf"
                " would kill it"
            )
        self._has_seccomp = mode != "0"
        if not self._has_seccomp:
            return
        self._filters = read_filters(self._tid)
        if self._filters is None and not self._may_try():
            raise NotSupportedError(
                f"{self.target} has seccomp filters that this monitor may not read, and whose verdict may"
                f" be to kill it:"
                " run `vmmswap-monitor NAME --attach PID` as root outside the unit, or use the option force"
            )

    def _may_try(self) -> bool:
        """True if calls may be made although we cannot know what the filters say to them."""
        program = _program_of(self.target)
        return program.startswith(_KNOWN_FILTERS) or (
            self._place.force and not program.startswith(_DEADLY_FILTERS)
        )

    def pass_over_filters(self) -> bool:
        """From here on make calls that a filter forbids too, if that was asked for and the kernel grants it.

        The kernel does so for a tracer with CAP_SYS_ADMIN that has no filter itself. If that is killed in the
        instant between two requests of _swap(), the filter meets the call after all.
        """
        can = self._place.force and self._filters is not None and self._arch.swaps_calls
        try:
            self._suspend_filters(can)
            self._suspend_filters(False)
        except OSError:
            can = False
        self._passes_over = can
        return can

    def _suspend_filters(self, on: bool) -> None:
        options = ptrace.PTRACE_O_TRACESYSGOOD | (ptrace.PTRACE_O_SUSPEND_SECCOMP if on else 0)
        ptrace.request(ptrace.PTRACE_SETOPTIONS, self._tid, 0, options)

    def read(self, addr: int, size_bytes: int) -> bytes:
        return ptrace.peek(self._tid, addr, size_bytes)

    def write(self, addr: int, data: bytes) -> None:
        poke(self._tid, addr, data)

    def call(self, name: str, *arguments: int) -> int:
        """Make a system call. OSError with what it returned; CallRefusedError if a filter forbids it."""
        self._turn_back()
        number = self._arch.syscalls[name]
        is_forbidden = self._is_forbidden(name, *arguments)
        made, made_with = _HARMLESS if is_forbidden else (name, arguments)
        self._begin(made, made_with)
        registers = self._run_to_syscall_stop(name)
        self._check_entry(registers, made, made_with)
        reach("call.entry")
        if is_forbidden:
            self._swap(registers, number, arguments)
        registers = self._run_to_syscall_stop(name)
        if is_forbidden:
            self._suspend_filters(False)
        reach("call.exit")
        if self._filters is None and self._has_seccomp:
            self._check_trap(name)
        result = self._arch.result(registers)
        if -4096 < result < 0:
            raise OSError(-result, f"{name} in {self.target}: {os.strerror(-result)}")
        return result

    def _begin(self, name: str, arguments: Sequence[int]) -> None:
        assert self._home is not None  # noqa: S101  (see scratch_addr)
        number = self._arch.syscalls[name]
        self._called = True
        self._arch.write(
            self._tid, self._arch.call(self._registers, self._home, self._place.gadgets, number, arguments)
        )
        reach("call.registers")
        if not self._masked:
            self._masked = True
            ptrace.set_sigmask(self._tid, _BLOCKED | self._sigmask & self._pending_signals())
        reach("call.mask")

    def _check_entry(self, registers: Registers, name: str, arguments: Sequence[int]) -> None:
        """Somebody may have opened /proc/PID/mem long ago, and change the code under our hands: then another
        call is about to be made, by a thread with something open that is not for the VMM to have.
        """
        wanted = [value & _WORD_MASK for value in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
        if self._arch.entry(registers) != (self._arch.syscalls[name], wanted):
            raise NotSupportedError(
                f"{self.target} made a call other than {name}: something is changing its code"
            )

    def _swap(self, registers: Registers, number: int, arguments: Sequence[int]) -> None:
        """At the entry of a harmless call: make the forbidden one instead. The request that lets the thread
        go on has to follow at once.
        """
        other = self._arch.other_call(registers, number, arguments)
        self._suspend_filters(True)
        self._arch.write(self._tid, other)

    def _turn_back(self) -> None:
        """From the entry of a call that is not to be made any more. Not by the number -1, as long as there is
        another way: a filter may kill at that.
        """
        if not self._is_entering or not self._arch.swaps_calls or self._verdict(*_HARMLESS):
            return
        name, arguments = _HARMLESS
        registers = self._arch.read(self._tid)
        other = self._arch.other_call(registers, self._arch.syscalls[name], arguments)
        self._arch.write(self._tid, other)
        self._run_to_syscall_stop(name)

    def _pending_signals(self) -> int:
        """Such a one that the thread blocks waits on, also if it is the number of a fault."""
        keys = ("SigPnd", "ShdPnd")
        own, shared = (int(word_of_status(self.target.pid, self._tid, key), 16) for key in keys)
        return own | shared

    def _is_forbidden(self, name: str, *arguments: int) -> bool:
        """By a filter, which is to be passed over. CallRefusedError if it is not."""
        needed = [_HARMLESS, ("rt_sigreturn", ())] if self._passes_over else [("rt_sigreturn", ())]
        for what, args in needed:
            if verdict := self._verdict(what, args):
                raise CallRefusedError(f"a seccomp filter of {self.target} would {verdict} at {what}")
        verdict = self._verdict(name, arguments)
        if verdict and not self._passes_over:
            raise CallRefusedError(f"a seccomp filter of {self.target} would {verdict} at {name}")
        return bool(verdict)

    def check_allowed(self, name: str, *arguments: int) -> None:
        """CallRefusedError if a filter forbids this call, by a thread that inherits the filters too."""
        if verdict := self._verdict(name, arguments):
            raise CallRefusedError(f"a seccomp filter of {self.target} would {verdict} at {name}")

    def _verdict(self, name: str, arguments: Sequence[int]) -> str:
        """What the filters would do instead of the call; empty: they let it pass, or are not known."""
        if self._filters is None:
            return ""
        behind = self._place.gadgets["syscall"] + self._arch.syscall_bytes
        return self._filters.refusal(self._arch.syscalls[name], self._arch.audit, behind, arguments)

    def _check_trap(self, name: str) -> None:
        """A filter that sends SIGSYS leaves the call undone and the signal pending: take it away."""
        pending = int(word_of_status(self.target.pid, self._tid, "SigPnd"), 16)
        if pending >> (signal.SIGSYS - 1) & 1:
            self._run_to_syscall_stop(name)

    def _run_to_syscall_stop(self, name: str) -> Registers:
        deadline = time.monotonic() + _CALL_S
        give = 0
        while True:
            ptrace.request(ptrace.PTRACE_SYSCALL, self._tid, 0, give)
            give = 0
            stop = ptrace.wait_stop(self._tid, deadline)
            if stop is None:
                raise TimeoutError(errno.ETIMEDOUT, f"{name} in {self.target} takes too long")
            if stop.code == SYSCALL_STOP:
                self._is_entering = not self._is_entering
                break
            if stop.event == 0:
                give = self._meet_signal(stop.signal, name)
        registers = self._arch.read(self._tid)
        behind = self._place.gadgets["syscall"] + self._arch.syscall_bytes
        if self._arch.instruction_addr(registers) != behind:
            raise InternalError(
                f"{self.target} is at {self._arch.instruction_addr(registers):#x} after {name}"
            )
        return registers

    def _meet_signal(self, number: int, name: str) -> int:
        """The signal to resume the thread with."""
        if number not in _OWN_FAULTS:
            return number  # SIGSTOP: the thread notes the stop, which begins when we release it
        if not ptrace.is_own_fault(self._tid):
            self._pending = number
            return 0
        if number == signal.SIGSYS:
            raise CallRefusedError(f"a seccomp filter of {self.target} does not let {name} pass")
        raise InternalError(f"{self.target} got {signal.Signals(number).name} at {name}")

    def release(self) -> None:
        """Release the thread as it was.

        Its registers are written as they were read: a traced thread that is released looks for signals, and
        then the kernel begins an interrupted system call again, or ends it with EINTR if a handler has run.
        Not at a call's entry, where the kernel would make the interrupted one instead of ours.
        """
        self._turn_back()
        if self._masked:
            ptrace.set_sigmask(self._tid, self._sigmask)
            reach("mask-restored")
        if self._called:
            restored = self._arch.resumed(self._registers) if self._is_entering else self._registers
            self._arch.write(self._tid, restored)
            reach("registers-restored")
        ptrace.request(ptrace.PTRACE_DETACH, self._tid, 0, self._pending)
        reach("detached")


def _is_guarded(stack: Mapping, mappings: Sequence[Mapping]) -> bool:
    """True if what lies below the thread's stack is stack too, and not somebody's data: a program may have
    its threads run on stacks as small as it likes (Go's, and others that switch stacks themselves), cut from
    memory that it uses otherwise. One that ends in a guard was made for the kernel's signal frames.
    """
    return stack.path == "[stack]" or any(
        mapping.end == stack.start and mapping.perms[:3] == "---" for mapping in mappings
    )


def word_of_status(pid: int, tid: int, key: str) -> str:
    """The first word of a value in /proc of a thread; "0" if the kernel has none."""
    return (status_of(pid, tid).get(key) or "0").split()[0]


def _program_of(target: Target) -> str:
    try:
        return Path(f"/proc/{target.pid}/exe").readlink().name
    except OSError:
        return ""
