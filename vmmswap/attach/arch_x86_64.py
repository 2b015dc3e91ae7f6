# SPDX-License-Identifier: GPL-2.0-or-later
"""x86-64: see `arch`."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence

from ptrace import PtraceError
from ptrace.binding import ptrace_getregs, ptrace_setregs

from vmmswap.attach.arch import NO_CHANGE, SCRATCH_BYTES, Architecture, Registers, WayHome
from vmmswap.errors import NotSupportedError
from vmmswap.linux.ptrace import get_regset

_CODE_64 = 0x33  # the code segment of 64-bit mode
_RED_ZONE_BYTES = 128
_NO_SYSCALL = (1 << 64) - 1
_RESTART = {-512, -513, -514}  # ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND
_RESTART_BLOCK = -516
_RESTART_SYSCALL = 219
_RT_SIGRETURN = 15

_NT_X86_XSTATE = 0x202
_XSTATE_MAX_BYTES = 1 << 16
_XSTATE_SOFTWARE = 464  # 48 bytes that the processor leaves to software
_TILES = 0b11 << 17  # AMX: the last components, which a thread has only if it asked for them
_SIZE_BEFORE_TILES = 2696
_MAGIC1, _MAGIC2 = 0x46505853, 0x46505845

_UC_FLAGS = 0b111  # with extended state; with ss, which is restored as it is
_UCONTEXT = struct.Struct("<QQQixxxxQ")  # uc_flags, uc_link, uc_stack
_GENERAL = [
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "rdi",
    "rsi",
    "rbp",
    "rbx",
    "rdx",
    "rax",
    "rcx",
    "rsp",
    "rip",
    "eflags",
]
_SIGCONTEXT = struct.Struct("<18Q4H5Q64x")  # ..., cs gs fs ss, err trapno oldmask cr2 fpstate
_UCONTEXT_BYTES = _UCONTEXT.size + _SIGCONTEXT.size + 8
_CHAIN = struct.Struct("<3Q")
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")


class X86_64(Architecture):  # noqa: N801  (as the kernel calls it)
    audit = 0xC000003E
    syscalls: Mapping[str, int] = {
        "close": 3,
        "mmap": 9,
        "mprotect": 10,
        "munmap": 11,
        "rt_sigprocmask": 14,
        "rt_sigreturn": _RT_SIGRETURN,
        "ioctl": 16,
        "madvise": 28,
        "recvmsg": 47,
        "socketpair": 53,
        "clone": 56,
        "exit": 60,
        "fcntl": 72,
        "ftruncate": 77,
        "prctl": 157,
        "futex": 202,
        "openat": 257,
        "memfd_create": 319,
        "userfaultfd": 323,
    }
    ioctl = 16
    # read, poll, select, nanosleep, accept, recvfrom, recvmsg, wait4, futex, clock_nanosleep, pselect6, ppoll
    gentle = frozenset({0, 7, 23, 35, 43, 45, 47, 61, 202, 230, 270, 271})
    patterns: Mapping[str, bytes] = {
        "syscall": b"\x0f\x05\xc3",
        "set": b"\x58\xc3",
    }  # syscall; ret. pop %rax; ret
    syscall_bytes = 2
    swaps_calls = True

    def read(self, tid: int) -> Registers:
        try:
            return ptrace_getregs(tid)
        except PtraceError as error:
            raise OSError(error.errno, str(error)) from None

    def write(self, tid: int, registers: Registers) -> None:
        try:
            ptrace_setregs(tid, registers)
        except PtraceError as error:
            raise OSError(error.errno, str(error)) from None

    def check(self, registers: Registers) -> None:
        if registers.cs != _CODE_64:
            raise NotSupportedError("the process runs in 32-bit mode: only 64-bit VMMs can be attached to")

    def is_in_syscall(self, _tid: int, registers: Registers) -> bool:
        return bool(registers.orig_rax != _NO_SYSCALL)

    def stack_addr(self, registers: Registers) -> int:
        return int(registers.rsp) - _RED_ZONE_BYTES

    def instruction_addr(self, registers: Registers) -> int:
        return int(registers.rip)

    def resumed(self, registers: Registers) -> Registers:
        return _resumed(registers, restart_block_with=_RESTART_SYSCALL)

    def extended(self, tid: int) -> bytes:
        """The XSAVE area with the software's words set as in a signal frame."""
        area = bytearray(get_regset(tid, _NT_X86_XSTATE, _XSTATE_MAX_BYTES))
        (features,) = struct.unpack_from("<Q", area, _XSTATE_SOFTWARE)
        if features & _TILES:
            del area[_SIZE_BEFORE_TILES:]
            features &= ~_TILES
        software = struct.pack("<IIQI28x", _MAGIC1, len(area) + 4, features, len(area))
        area[_XSTATE_SOFTWARE : _XSTATE_SOFTWARE + len(software)] = software
        return bytes(area) + struct.pack("<I", _MAGIC2)

    def way_home(
        self, registers: Registers, extended: bytes, sigmask: int, gadgets: Mapping[str, int]
    ) -> WayHome:
        """From low to high addresses: three words for returns, the frame, the XSAVE area, scratch memory."""
        home = _resumed(registers, restart_block_with=None)
        end = self.stack_addr(registers) & ~63
        scratch_addr = end - SCRATCH_BYTES
        xsave_addr = (scratch_addr - len(extended)) & ~63
        frame_addr = (xsave_addr - _UCONTEXT_BYTES) & ~15
        addr = frame_addr - _CHAIN.size
        context = _UCONTEXT.pack(_UC_FLAGS, 0, 0, NO_CHANGE, 0)
        context += _SIGCONTEXT.pack(
            *(getattr(home, name) for name in _GENERAL),
            *(home.cs, home.gs & 0xFFFF, home.fs & 0xFFFF, home.ss),
            *(0, 0, 0, 0, xsave_addr),
        )
        context += struct.pack("<Q", sigmask)
        data = _CHAIN.pack(gadgets["set"], _RT_SIGRETURN, gadgets["syscall"]) + context
        data = data.ljust(xsave_addr - addr, b"\0") + extended
        return WayHome(addr, data.ljust(end - addr, b"\0"), addr, scratch_addr)

    def call(
        self,
        registers: Registers,
        home: WayHome,
        gadgets: Mapping[str, int],
        number: int,
        arguments: Sequence[int],
    ) -> Registers:
        changed = _copy(registers)
        changed.rax = number
        changed.orig_rax = (
            _NO_SYSCALL  # else the kernel would go back over the instruction to restart its own
        )
        changed.rip = gadgets["syscall"]
        changed.rsp = home.stack_addr
        _set_arguments(changed, arguments)
        return changed

    def other_call(self, registers: Registers, number: int, arguments: Sequence[int]) -> Registers:
        changed = _copy(registers)
        changed.orig_rax = number
        _set_arguments(changed, arguments)
        return changed

    def entry(self, registers: Registers) -> tuple[int, list[int]]:
        return int(registers.orig_rax), [int(getattr(registers, name)) for name in _ARGUMENTS]

    def result(self, registers: Registers) -> int:
        return ctypes.c_int64(registers.rax).value


def _copy(registers: Registers) -> Registers:
    return type(registers).from_buffer_copy(registers)


def _set_arguments(registers: Registers, arguments: Sequence[int]) -> None:
    padded = (*arguments, 0, 0, 0, 0, 0, 0)
    for name, value in zip(_ARGUMENTS, padded, strict=False):
        setattr(registers, name, value & _NO_SYSCALL)


def _resumed(registers: Registers, restart_block_with: int | None) -> Registers:
    """restart_block_with: the call that continues a half-done wait; None: the wait itself, from its
    beginning.
    """
    resumed = _copy(registers)
    resumed.orig_rax = _NO_SYSCALL
    if registers.orig_rax == _NO_SYSCALL:
        return resumed
    code = ctypes.c_int64(registers.rax).value
    if code in _RESTART or (code == _RESTART_BLOCK and restart_block_with is None):
        resumed.rax = registers.orig_rax
    elif code == _RESTART_BLOCK:
        resumed.rax = restart_block_with
    else:
        return resumed
    resumed.rip = registers.rip - 2
    return resumed
