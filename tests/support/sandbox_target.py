# SPDX-License-Identifier: GPL-2.0-or-later
"""A stand-in for a VMM that belongs to another user: maps a memfd and waits. Prints where, as JSON."""

import ctypes
import json
import mmap
import os
import signal

PATTERN = b"guest bytes"

memfd = os.memfd_create("guest")
os.ftruncate(memfd, 4 * mmap.PAGESIZE)
memory = mmap.mmap(memfd, 4 * mmap.PAGESIZE)
memory[: len(PATTERN)] = PATTERN
addr = ctypes.addressof(ctypes.c_char.from_buffer(memory))
print(json.dumps({"pid": os.getpid(), "addr": addr, "memfd": memfd}), flush=True)
signal.pause()
