# SPDX-License-Identifier: GPL-2.0-or-later
"""What the heap no longer needs goes back, though all memory is locked, and is locked again after that."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

BLOCKS, BLOCK_BYTES = 4096, 4096

# The last block stays, so that the heap cannot just end before those that are freed.
PROGRAM = f"""
import ctypes
from pathlib import Path
from vmmswap.monitor import own_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
own_memory.use_one_arena()
own_memory.lock()
blocks = [libc.malloc(ctypes.c_size_t({BLOCK_BYTES})) for _ in range({BLOCKS})]
for block in blocks:
    ctypes.memset(block, 1, {BLOCK_BYTES})
print(Path("/proc/self/smaps").read_text())
for block in blocks[:-1]:
    libc.free(ctypes.c_void_p(block))
own_memory.trim()
print("AFTER", Path("/proc/self/smaps").read_text())
"""
HEAP = re.compile(r"\[heap\]\n(?:\w+: .*\n)*?Rss: +(\d+) kB\n(?:\w+: .*\n)*?VmFlags: (.*)")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it locks its memory")
def test_a_locked_heap_is_given_back_and_stays_locked():
    shown = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True).stdout
    before, after = (HEAP.findall(text) for text in shown.split("AFTER"))
    gone_kib = sum(int(rss) for rss, _ in before) - sum(int(rss) for rss, _ in after)
    assert gone_kib > BLOCKS * BLOCK_BYTES / 1024 / 2
    assert after
    assert all("lo" in flags.split() for _, flags in before + after)
