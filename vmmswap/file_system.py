# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kind of file system a file is on. What is stored on one that lives on RAM frees nothing."""

from __future__ import annotations

import ctypes
import sys

ON_RAM = frozenset({"tmpfs", "ramfs"})

_STATFS_BYTES = 256  # more than any struct statfs has; f_type, a long, comes first
_KINDS = {  # include/uapi/linux/magic.h
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0x2FC12FC1: "zfs",
    0x794C7630: "overlay",
    0x6969: "nfs",
}


def kind_of(fd: int) -> str:
    """tmpfs, ext4 (its forerunners, too), xfs, ...; the magic number in hexadecimal for one that is not known
    here, "" if the kernel does not say.
    """
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    if ctypes.CDLL(None).fstatfs(fd, found) != 0:
        return ""
    magic = int.from_bytes(found.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) & 0xFFFFFFFF
    return _KINDS.get(magic, f"{magic:#x}")
