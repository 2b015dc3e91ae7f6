# SPDX-License-Identifier: GPL-2.0-or-later
"""DiskTierMax= and DiskKeepFree= in bytes, for the file system that the swap directory is on."""

from __future__ import annotations

import os
from pathlib import Path

from vmmswap.config import Config
from vmmswap.config_values import in_bytes

_KEEP_FREE_PERCENT = 5
_KEEP_FREE_AT_MOST_BYTES = 4 << 30


def disk_limits(config: Config, swap_dir: Path) -> tuple[int, int]:
    """Bytes that the VM may occupy on the disk, and bytes that stay free there; 0: no limit."""
    try:
        found = os.statvfs(swap_dir)
    except OSError:  # a successor's: its store is open, and its directory may be gone
        return 0, 0
    total_bytes = found.f_blocks * found.f_frsize
    return in_bytes(config.disk_tier_max, total_bytes), _keep_free_bytes(config.disk_keep_free, total_bytes)


def is_in_reserve(fd: int, disk_keep_free: str) -> bool:
    """True if the file system has no more space left than DiskKeepFree= reserves for others."""
    found = os.fstatvfs(fd)
    keep_free_bytes = _keep_free_bytes(disk_keep_free, found.f_blocks * found.f_frsize)
    return found.f_bavail * found.f_frsize < keep_free_bytes


def _keep_free_bytes(text: str, total_bytes: int) -> int:
    if text:
        return in_bytes(text, total_bytes)
    return min(total_bytes * _KEEP_FREE_PERCENT // 100, _KEEP_FREE_AT_MOST_BYTES)
