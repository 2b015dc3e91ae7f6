# SPDX-License-Identifier: GPL-2.0-or-later
"""Closing fds whose files may go with them: the kernel frees the memory of a memfd when its last fd is
closed, and whoever closes it waits for that, 60 to 200 ms a GiB.
"""

from __future__ import annotations

import functools
import os
import stat
from concurrent.futures import ThreadPoolExecutor

_LARGE_BYTES = 64 << 20


@functools.cache
def _closer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "closer")


def close(fd: int) -> None:
    """Close it; on a thread, and perhaps later, if it may be the last one of a large file without a name."""
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and status.st_blocks * 512 > _LARGE_BYTES:
        _closer().submit(os.close, fd)
    else:
        os.close(fd)
