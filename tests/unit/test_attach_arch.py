# SPDX-License-Identifier: GPL-2.0-or-later
"""The way home of each processor, against the kernel's own structures, and the seccomp interpreter."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from pathlib import Path

import pytest

from vmmswap.attach.arch import NO_CHANGE
from vmmswap.attach.arch_aarch64 import AArch64, Aarch64Registers
from vmmswap.attach.seccomp import Filters, run

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050001

# offsetof() in struct rt_sigframe, by a compiler, from the kernel's asm/ucontext.h and sigcontext.h.
AARCH64_FRAME = {
    "ss_flags": 152,
    "uc_sigmask": 168,
    "x0": 312,
    "sp": 560,
    "pc": 568,
    "pstate": 576,
    "fpsimd": 592,
}


@pytest.fixture
def registers() -> Aarch64Registers:
    found = Aarch64Registers()
    for idx in range(31):
        found.x[idx] = 0x1000 + idx
    found.sp, found.pc, found.pstate = 0x7FFFFFFF_F008, 0x400000, 0x60000000
    return found


def test_aarch64_way_home(registers: Aarch64Registers) -> None:
    home = AArch64().way_home(registers, b"\x11" * 544, 0x5A5A, {})
    assert home.addr % 16 == 0
    assert home.addr == home.stack_addr
    assert home.scratch_addr > home.addr + 592 + 544 - 1
    assert home.addr + len(home.data) <= registers.sp
    at = AARCH64_FRAME
    assert struct.unpack_from("<I", home.data, at["ss_flags"])[0] == NO_CHANGE
    assert struct.unpack_from("<Q", home.data, at["uc_sigmask"])[0] == 0x5A5A
    assert struct.unpack_from("<31Q", home.data, at["x0"]) == tuple(registers.x)
    assert struct.unpack_from("<QQQ", home.data, at["sp"]) == (registers.sp, registers.pc, registers.pstate)
    assert home.data[at["fpsimd"] : at["fpsimd"] + 544] == b"\x11" * 544


def test_aarch64_call(registers: Aarch64Registers) -> None:
    arch = AArch64()
    home = arch.way_home(registers, b"", 0, {})
    gadgets = {"syscall": 0x5000, "sigreturn": 0x6000}
    changed = arch.call(registers, home, gadgets, 282, (1, -1))
    assert (changed.x[0], changed.x[1], changed.x[8]) == (1, (1 << 64) - 1, 282)
    assert (changed.pc, changed.x[30], changed.sp) == (0x5000, 0x6000, home.stack_addr)
    assert changed.x[20] == registers.x[20]
    changed.x[0] = (1 << 64) - 22
    assert arch.result(changed) == -22
    assert bytes(arch.resumed(registers)) == bytes(registers)


def test_aarch64_instructions(tmp_path: Path) -> None:
    """Against an assembler, where there is one."""
    source = tmp_path / "code.s"
    source.write_text("svc #0\nret\nmov x8, #139\nsvc #0\n")
    command = ["clang", "--target=aarch64-linux-gnu", "-c", str(source), "-o", str(tmp_path / "code.o")]
    try:
        made = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("clang is not installed")
    assert made.returncode == 0, made.stderr
    code = (tmp_path / "code.o").read_bytes()
    patterns = AArch64.patterns
    assert patterns["syscall"] + patterns["sigreturn"] in code


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="python-ptrace has this machine's registers only")
def test_x86_64_restarts() -> None:
    from ptrace.binding import ptrace_registers_t  # noqa: PLC0415

    from vmmswap.attach.arch_x86_64 import X86_64  # noqa: PLC0415

    arch = X86_64()
    for code, call, home_call in ((-512, 7, 7), (-513, 7, 7), (-514, 7, 7), (-516, 219, 7)):
        found = ptrace_registers_t(
            rax=code & ((1 << 64) - 1), orig_rax=7, rip=0x1002, rsp=0x7FFF0000, cs=0x33
        )
        resumed = arch.resumed(found)
        assert (resumed.rax, resumed.rip) == (call, 0x1000)
        home = arch.way_home(found, bytes(1024), 0, {"set": 1, "syscall": 2})
        values = struct.unpack_from("<18Q", home.data, 24 + 40)
        assert (values[13], values[16], values[15]) == (home_call, 0x1000, 0x7FFF0000)
    for code, orig in ((5, 7), (-4, 7), (-512, -1)):  # done, EINTR, not in a system call
        mask = (1 << 64) - 1
        found = ptrace_registers_t(rax=code & mask, orig_rax=orig & mask, rip=0x1002, rsp=0x7FFF0000)
        resumed = arch.resumed(found)
        assert (ctypes.c_int64(resumed.rax).value, resumed.rip) == (code, 0x1002)


def program(*instructions: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    return list(instructions)


LOAD_NR = (0x20, 0, 0, 0)
LOAD_ARG0 = (0x20, 0, 0, 16)


def test_filters_by_number_and_argument() -> None:
    """As libseccomp writes them: jumps, loads of halves of arguments, masks, scratch memory."""
    by_number = program(LOAD_NR, (0x15, 0, 1, 323), (0x06, 0, 0, KILL), (0x06, 0, 0, ALLOW))
    by_argument = program(
        LOAD_ARG0, (0x54, 0, 0, 0xFF), (0x02, 0, 0, 3), (0x61, 0, 0, 3), (0x87, 0, 0, 0), (0x35, 0, 1, 16),
        (0x06, 0, 0, ERRNO), (0x06, 0, 0, ALLOW),
    )  # fmt: skip
    filters = Filters((by_number, by_argument))
    assert filters.refusal(1, 0xC000003E, 0, (0x115,)) == "answer with an error"
    assert filters.refusal(1, 0xC000003E, 0, (0x10F,)) == ""
    assert filters.refusal(323, 0xC000003E, 0, (0x1FF,)) == "kill the process"
    assert Filters(()).refusal(323, 0, 0, ()) == ""


@pytest.mark.parametrize(
    ("operation", "operand", "result"),
    [
        (0x00, 7, 27),
        (0x10, 30, 2**32 - 10),
        (0x20, 3, 60),
        (0x30, 3, 6),
        (0x30, 0, 0),
        (0x40, 1, 21),
        (0x50, 4, 4),
        (0x60, 2, 80),
        (0x70, 2, 5),
        (0x80, 0, 2**32 - 20),
        (0xA0, 1, 21),
    ],
)
def test_arithmetic(operation: int, operand: int, result: int) -> None:
    code = program((0x00, 0, 0, 20), (0x04 | operation, 0, 0, operand), (0x16, 0, 0, 0))
    assert run(code, bytes(64)) == result


def test_jumps_and_registers() -> None:
    code = program(
        (0x80, 0, 0, 0),  # the length of the data
        (0x07, 0, 0, 0),  # to the index register
        (0x03, 0, 0, 1),  # and to memory
        (0x00, 0, 0, 3),
        (0x60, 0, 0, 1),  # back
        (0x1D, 0, 1, 0),  # equal to the index register
        (0x05, 0, 0, 1),
        (0x06, 0, 0, 1),
        (0x45, 0, 1, 0x40),
        (0x06, 0, 0, 42),
        (0x06, 0, 0, 2),
    )
    assert run(code, bytes(64)) == 42
