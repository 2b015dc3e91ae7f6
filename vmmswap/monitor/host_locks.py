# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks that bound how many monitors of a host do something at a time: one file for each that may.

The kernel releases the lock of a monitor that is killed, and nobody else has to be there.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path


def first_free(directory: Path, most: int, prefix: str = "") -> int | None:
    """An fd with the lock of the first file that nobody has locked; closing it releases the lock. None if all
    are locked. OSError if the directory cannot be used.
    """
    for number in range(most):
        path = directory / f"{prefix}{number}"
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EWOULDBLOCK:
                raise
        else:
            return fd
    return None
