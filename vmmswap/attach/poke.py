# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes into a tracee. In C: a VMM's thread stands still meanwhile, and hundreds of words are written."""

from __future__ import annotations

import os

from vmmswap.engine.native import ffi, lib

_WORD_BYTES = 8


def poke(tid: int, addr: int, data: bytes) -> None:
    """Write whole words into a tracee that stands still. OSError. Never by pid: the process may have become
    another program since it was looked at, a set-uid one for instance, by execve() in another of its threads.
    """
    if len(data) % _WORD_BYTES:
        raise ValueError(f"{len(data)} bytes are no whole words")
    words = ffi.from_buffer("uint64_t[]", data)
    if code := -lib.tracee_write(tid, addr, words, len(words)):
        raise OSError(code, f"memory of thread {tid} at {addr:#x}: {os.strerror(code)}")
