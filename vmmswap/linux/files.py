# SPDX-License-Identifier: GPL-2.0-or-later
"""Which file an fd is of."""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

_AT_EMPTY_PATH = 0x1000
_AT_STATX_DONT_SYNC = 0x4000
_STATX_INO = 0x100
_STATX_BYTES = 256
_STATX_INO_AT, _STATX_DEV_AT = 32, 136  # struct statx: stx_ino; stx_dev_major, stx_dev_minor

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class FileId:
    """Tells files apart, whatever fd or mapping they are seen through."""

    dev: int
    inode: int


def file_id(fd: int) -> FileId:
    status = os.fstat(fd)
    return FileId(status.st_dev, status.st_ino)


def file_id_unasked(fd: int) -> FileId:
    """The same without asking the file system, whose server may be a peer's and never answer (FUSE).

    AT_STATX_DONT_SYNC: what the kernel knows already, and number and device never change.
    """
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(fd, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, _STATX_INO, buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"statx: {os.strerror(code)}")
    (inode,) = struct.unpack_from("<Q", buffer, _STATX_INO_AT)
    major, minor = struct.unpack_from("<II", buffer, _STATX_DEV_AT)
    return FileId(os.makedev(major, minor), inode)
