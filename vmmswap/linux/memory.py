# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's memory: /proc/meminfo."""

from __future__ import annotations

from pathlib import Path


def meminfo_bytes(*keys: str) -> tuple[int, ...]:
    """These values, in bytes. OSError if one is missing."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    values = dict(line.split(":", 1) for line in lines)
    for key in keys:
        if key not in values:
            raise OSError(f"/proc/meminfo has no {key}: is /proc mounted?")
    return tuple(int(values[key].split()[0]) * 1024 for key in keys)
