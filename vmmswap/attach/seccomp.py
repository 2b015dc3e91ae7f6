# SPDX-License-Identifier: GPL-2.0-or-later
"""What a thread's seccomp filters would do to a system call, asked before it is made: some filters kill.

The kernel gives a thread's filters to a tracer that has CAP_SYS_ADMIN and no filter itself. They are programs
of classic BPF over struct seccomp_data, run here on the call that is to be made.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vmmswap.linux.ptrace import PTRACE_SECCOMP_GET_FILTER, request

_INSTRUCTION = struct.Struct("<HBBI")  # code, jt, jf, k
_DATA = struct.Struct("<iIQ6Q")  # nr, arch, instruction_pointer, args
_MASK = 0xFFFFFFFF
_MAX_FILTERS = 256
_ACTIONS = {
    0x80000000: "kill the process",
    0x00000000: "kill the thread",
    0x00030000: "send SIGSYS",
    0x00050000: "answer with an error",
    0x7FC00000: "ask a supervisor",
    0x7FF00000: "ask a tracer",
}
_ALLOW = 0x7FFF0000
_LOG = 0x7FFC0000

_ALU: dict[int, Callable[[int, int], int]] = {
    0x00: lambda a, b: a + b,
    0x10: lambda a, b: a - b,
    0x20: lambda a, b: a * b,
    0x30: lambda a, b: a // b if b else 0,
    0x40: lambda a, b: a | b,
    0x50: lambda a, b: a & b,
    0x60: lambda a, b: a << (b & 31),
    0x70: lambda a, b: a >> (b & 31),
    0x80: lambda a, _: -a,
    0xA0: lambda a, b: a ^ b,
}
_JUMP: dict[int, Callable[[int, int], bool]] = {
    0x10: lambda a, b: a == b,
    0x20: lambda a, b: a > b,
    0x30: lambda a, b: a >= b,
    0x40: lambda a, b: bool(a & b),
}

Program = Sequence[tuple[int, int, int, int]]


@dataclass(frozen=True, slots=True)
class Filters:
    """A thread's filters."""

    programs: tuple[Program, ...]

    def refusal(self, number: int, audit: int, addr: int, arguments: Sequence[int]) -> str:
        """What the filters would do instead of the call; empty: they let it pass. addr: behind the
        instruction.
        """
        padded = [value & 0xFFFFFFFFFFFFFFFF for value in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
        data = _DATA.pack(number, audit, addr, *padded)
        actions = [run(program, data) & 0xFFFF0000 for program in self.programs]
        strictest = min(actions, key=lambda action: ctypes.c_int32(action).value, default=_ALLOW)
        return "" if strictest in (_ALLOW, _LOG) else _ACTIONS.get(strictest, "kill the process")


def read_filters(tid: int) -> Filters | None:
    """A stopped tracee's filters, None if we may not see them."""
    programs: list[Program] = []
    for idx in range(_MAX_FILTERS):
        try:
            count = request(PTRACE_SECCOMP_GET_FILTER, tid, idx)
            buffer = ctypes.create_string_buffer(count * _INSTRUCTION.size)
            request(PTRACE_SECCOMP_GET_FILTER, tid, idx, ctypes.addressof(buffer))
        except OSError as error:
            return Filters(tuple(programs)) if error.errno == errno.ENOENT else None
        programs.append(list(_INSTRUCTION.iter_unpack(buffer.raw)))
    return None


def run(program: Program, data: bytes) -> int:
    """The program's verdict on a struct seccomp_data. The kernel has checked that it ends and stays in
    bounds.
    """
    accumulator = index = at = 0
    memory = [0] * 16
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        kind, mode = code & 0x07, code & 0xE0
        operand = index if code & 0x08 else value
        if kind in (0x00, 0x01):  # BPF_LD, BPF_LDX
            loaded = _load(mode, value, data, memory)
            accumulator, index = (loaded, index) if kind == 0 else (accumulator, loaded)
        elif kind in (0x02, 0x03):  # BPF_ST, BPF_STX
            memory[value] = accumulator if kind == 0x02 else index
        elif kind == 0x04:
            accumulator = _ALU[code & 0xF0](accumulator, operand) & _MASK
        elif kind == 0x05:
            jump = _JUMP.get(code & 0xF0)
            at += value if jump is None else if_true if jump(accumulator, operand) else if_false
        elif kind == 0x06:
            return accumulator if code & 0x18 == 0x10 else value
        elif code & 0x80:  # BPF_TXA
            accumulator = index
        else:  # BPF_TAX
            index = accumulator


def _load(mode: int, value: int, data: bytes, memory: Sequence[int]) -> int:
    if mode == 0x20:  # BPF_ABS
        return int.from_bytes(data[value : value + 4], "little")
    if mode == 0x60:  # BPF_MEM
        return memory[value]
    if mode == 0x80:  # BPF_LEN
        return len(data)
    return value  # BPF_IMM
