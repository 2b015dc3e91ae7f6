# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's memory: /proc/meminfo."""

from __future__ import annotations

import re

from vmmswap.linux.small_file import read_small


def meminfo_bytes(*keys: str) -> tuple[int, ...]:
    """These values, in bytes. OSError if one is missing."""
    text = read_small("/proc/meminfo")
    return tuple(_kib_of(key, text) * 1024 for key in keys)


def _kib_of(key: str, text: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/meminfo has no {key}: is /proc mounted?")
    return int(found[1])
