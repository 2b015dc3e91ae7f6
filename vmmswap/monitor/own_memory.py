# SPDX-License-Identifier: GPL-2.0-or-later
"""What the monitor itself takes of the memory that it is to free; there is one for each VM."""

from __future__ import annotations

import ctypes
import gc

_M_ARENA_MAX = -8  # malloc.h

_libc = ctypes.CDLL(None)


def use_one_arena() -> None:
    """Before there are threads: libc would give each of ours a heap of its own (mallopt(3))."""
    _libc.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """What importing and starting have left behind."""
    gc.collect()
    _libc.malloc_trim(0)
