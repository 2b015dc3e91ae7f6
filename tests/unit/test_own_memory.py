# SPDX-License-Identifier: GPL-2.0-or-later
"""What the heap no longer needs goes back, though all memory is locked, and is locked again after that."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from vmmswap.monitor import own_memory

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


def test_what_a_successor_allocates_for_its_vm_counts_as_the_vms(monkeypatch):
    """It serves before it has settled: a monitor without a VM would not have that."""
    for name in ("_start_bytes", "_grown_bytes", "_vm_bytes"):
        monkeypatch.setattr(own_memory, name, 0)
    monkeypatch.setattr(own_memory.gc, "freeze", lambda: None)
    monkeypatch.setattr(own_memory, "trim", lambda: None)
    taken = [1000, 1300, 5000, 5200]  # before and after the VM is served, once settled, and later
    monkeypatch.setattr(own_memory, "_taken_bytes", lambda: taken.pop(0))
    with own_memory.growing_with_the_vm():
        pass
    own_memory.settle()
    assert own_memory.grown_bytes() == 300 + 200
