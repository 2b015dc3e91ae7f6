# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the small files that the kernel makes up while they are read: of /proc and of cgroups.

Each monitor reads some of them all its life, and pathlib and a text stream take ten times as long as the
kernel.
"""

from __future__ import annotations

import os
from pathlib import Path

_PART_BYTES = 16384


def read_small(path: str | Path) -> str:
    """All of it. OSError as of open(2) and read(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = list(iter(lambda: os.read(fd, _PART_BYTES), b""))
    finally:
        os.close(fd)
    return b"".join(parts).decode(errors="replace")
