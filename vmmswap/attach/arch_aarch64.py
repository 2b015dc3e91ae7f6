# SPDX-License-Identifier: GPL-2.0-or-later
"""AArch64: see `arch`. Unit-tested only: no such machine was there to try it on.

The kernel prepares the restart of a system call before a tracer sees the thread: x0 and pc already stand for
the repetition. Only for a half-done nanosleep, poll or timed futex wait does it set restart_syscall later,
which does not happen to changed registers: such a wait starts anew with its whole time.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence

from vmmswap.attach.arch import NO_CHANGE, SCRATCH_BYTES, Architecture, Registers, WayHome
from vmmswap.errors import NotSupportedError
from vmmswap.linux.ptrace import get_regset, set_regset

_NT_PRSTATUS = 1
_NT_PRFPREG = 2
_NT_ARM_SYSTEM_CALL = 0x404
_FPSIMD_MAGIC = 0x46508001
_FPSIMD = struct.Struct("<IIII512s")  # magic, size, fpsr, fpcr, vregs
_PSTATE_32 = 0x10
_SIGINFO_BYTES = 128
_UCONTEXT = struct.Struct("<QQQixxxxQQ120x8x")  # uc_flags, uc_link, uc_stack, uc_sigmask, padding
_SIGCONTEXT = struct.Struct("<Q31QQQQ8x")  # fault address, x0-x30, sp, pc, pstate, padding


class Aarch64Registers(ctypes.Structure):
    """NT_PRSTATUS."""

    _fields_ = (
        ("x", ctypes.c_uint64 * 31),
        ("sp", ctypes.c_uint64),
        ("pc", ctypes.c_uint64),
        ("pstate", ctypes.c_uint64),
    )


class AArch64(Architecture):
    audit = 0xC00000B7
    syscalls: Mapping[str, int] = {
        "ioctl": 29,
        "close": 57,
        "rt_sigreturn": 139,
        "prctl": 167,
        "socketpair": 199,
        "recvmsg": 212,
        "munmap": 215,
        "mmap": 222,
        "madvise": 233,
        "userfaultfd": 282,
    }
    ioctl = 29
    # read, pselect6, ppoll, futex, nanosleep, clock_nanosleep, accept, recvfrom, recvmsg, wait4
    gentle = frozenset({63, 72, 73, 98, 101, 115, 202, 207, 212, 260})
    patterns: Mapping[str, bytes] = {
        "syscall": bytes.fromhex("010000d4c0035fd6"),  # svc #0; ret
        "sigreturn": bytes.fromhex("681180d2010000d4"),  # mov x8, #139; svc #0
    }
    syscall_bytes = 4

    def read(self, tid: int) -> Registers:
        raw = get_regset(tid, _NT_PRSTATUS, ctypes.sizeof(Aarch64Registers))
        if len(raw) != ctypes.sizeof(Aarch64Registers):
            raise NotSupportedError("the process runs in 32-bit mode: only 64-bit VMMs can be attached to")
        return Aarch64Registers.from_buffer_copy(raw)

    def write(self, tid: int, registers: Registers) -> None:
        set_regset(tid, _NT_PRSTATUS, bytes(registers))

    def check(self, registers: Registers) -> None:
        if registers.pstate & _PSTATE_32:
            raise NotSupportedError("the process runs in 32-bit mode: only 64-bit VMMs can be attached to")

    def is_in_syscall(self, tid: int, _registers: Registers) -> bool:
        (number,) = struct.unpack("<i", get_regset(tid, _NT_ARM_SYSTEM_CALL, 4))
        return bool(number >= 0)

    def stack_addr(self, registers: Registers) -> int:
        return int(registers.sp)

    def instruction_addr(self, registers: Registers) -> int:
        return int(registers.pc)

    def resumed(self, registers: Registers) -> Registers:
        return Aarch64Registers.from_buffer_copy(registers)

    def extended(self, tid: int) -> bytes:
        raw = get_regset(tid, _NT_PRFPREG, 528)
        fpsr, fpcr = struct.unpack_from("<II", raw, 512)
        return _FPSIMD.pack(_FPSIMD_MAGIC, _FPSIMD.size, fpsr, fpcr, raw[:512]) + bytes(16)

    def way_home(
        self, registers: Registers, extended: bytes, sigmask: int, _gadgets: Mapping[str, int]
    ) -> WayHome:
        """From low to high addresses: siginfo, ucontext, the vector registers, scratch memory."""
        end = self.stack_addr(registers) & ~15
        scratch_addr = end - SCRATCH_BYTES
        data = bytes(_SIGINFO_BYTES) + _UCONTEXT.pack(0, 0, 0, NO_CHANGE, 0, sigmask)
        data += _SIGCONTEXT.pack(0, *registers.x, registers.sp, registers.pc, registers.pstate)
        data += extended
        addr = (scratch_addr - len(data)) & ~15
        return WayHome(addr, data.ljust(end - addr, b"\0"), addr, scratch_addr)

    def call(
        self,
        registers: Registers,
        home: WayHome,
        gadgets: Mapping[str, int],
        number: int,
        arguments: Sequence[int],
    ) -> Registers:
        changed = Aarch64Registers.from_buffer_copy(registers)
        for idx, value in enumerate((*arguments, 0, 0, 0, 0, 0, 0)[:6]):
            changed.x[idx] = value & ((1 << 64) - 1)
        changed.x[8] = number
        changed.x[30] = gadgets["sigreturn"]
        changed.pc = gadgets["syscall"]
        changed.sp = home.stack_addr
        return changed

    def entry(self, registers: Registers) -> tuple[int, list[int]]:
        return int(registers.x[8]), [int(registers.x[idx]) for idx in range(6)]

    def result(self, registers: Registers) -> int:
        return ctypes.c_int64(registers.x[0]).value
