# SPDX-License-Identifier: GPL-2.0-or-later
"""What differs between processors when a thread is made to run a system call that is not its own.

The thread must come to no harm if we die at any moment, also with its registers changed. So it is never given
bare registers for a system call, but a way home: on its stack, where a signal handler's frame would be, lies
a frame as the kernel writes it before it calls a handler, with all that the thread was; and behind the
`syscall` instruction that it runs follows a return into rt_sigreturn, which restores all of that. If we live,
we catch the thread right after the system call and put its registers back ourselves. If we are killed, the
kernel lets the thread go, and it finds home alone. Writing all registers is one ptrace request, so there is
no moment in between.

The one difference: rt_sigreturn makes the kernel forget how to go on with a half-done nanosleep, poll or
timed futex wait. On the way home alone such a call starts anew with its whole time.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vmmswap.errors import NotSupportedError

Registers = Any  # a ctypes structure of the processor's own

SCRATCH_BYTES = 512  # arguments of the system calls that pass memory
NO_CHANGE = 0x7F7F  # flags of a sigaltstack that no kernel knows: rt_sigreturn leaves the thread's own alone


@dataclass(frozen=True, slots=True)
class WayHome:
    """Memory to write at addr, below the thread's stack. stack_addr: the system call's stack pointer."""

    addr: int
    data: bytes
    stack_addr: int
    scratch_addr: int


class Architecture(ABC):
    """One processor's registers, instructions and frame. Numbers of system calls are the kernel's for it."""

    audit: int  # AUDIT_ARCH_*
    syscalls: Mapping[str, int]
    ioctl: int
    gentle: frozenset[int]  # waiting calls that go on by themselves if disturbed; the program sees nothing
    patterns: Mapping[str, bytes]  # instructions that are looked for in the VMM's code
    syscall_bytes: int  # length of the instruction
    swaps_calls = False  # one request makes another system call of one that is at its entry

    @abstractmethod
    def read(self, tid: int) -> Registers: ...

    @abstractmethod
    def write(self, tid: int, registers: Registers) -> None: ...

    @abstractmethod
    def check(self, registers: Registers) -> None:
        """NotSupportedError for a thread that is not in 64-bit mode."""

    @abstractmethod
    def is_in_syscall(self, tid: int, registers: Registers) -> bool: ...

    @abstractmethod
    def stack_addr(self, registers: Registers) -> int:
        """Where a signal handler's frame may begin: below what the interrupted code may use."""

    @abstractmethod
    def instruction_addr(self, registers: Registers) -> int: ...

    @abstractmethod
    def resumed(self, registers: Registers) -> Registers:
        """As the kernel would resume the thread, an interrupted system call begun again."""

    @abstractmethod
    def extended(self, tid: int) -> bytes:
        """Floating point and vector registers, as the frame needs them."""

    @abstractmethod
    def way_home(
        self, registers: Registers, extended: bytes, sigmask: int, gadgets: Mapping[str, int]
    ) -> WayHome: ...

    @abstractmethod
    def call(
        self,
        registers: Registers,
        home: WayHome,
        gadgets: Mapping[str, int],
        number: int,
        arguments: Sequence[int],
    ) -> Registers:
        """Registers for a system call that ends on the way home."""

    def other_call(self, registers: Registers, number: int, arguments: Sequence[int]) -> Registers:
        """Registers at the entry of a system call for another one instead; where swaps_calls."""
        raise NotImplementedError

    @abstractmethod
    def entry(self, registers: Registers) -> tuple[int, list[int]]:
        """At the entry of a system call: its number and six arguments."""

    @abstractmethod
    def result(self, registers: Registers) -> int:
        """What a system call has returned; negative: -errno."""


def current() -> Architecture:
    """This machine's."""
    machine = os.uname().machine
    if machine == "x86_64":
        from vmmswap.attach.arch_x86_64 import X86_64  # noqa: PLC0415  (python-ptrace is for this machine only)

        return X86_64()
    if machine == "aarch64":
        from vmmswap.attach.arch_aarch64 import AArch64  # noqa: PLC0415

        return AArch64()
    raise NotSupportedError(f"attach does not support {machine}, only x86_64 and aarch64: use the hand-off")
