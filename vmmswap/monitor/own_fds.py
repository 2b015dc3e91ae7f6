# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes fds of our own of those that were given. They are close-on-exec."""

from __future__ import annotations

import contextlib
import errno
import os

from vmmswap.errors import from_errno


def dup(fd: int, undo: contextlib.ExitStack) -> int:
    own = os.dup(fd)
    undo.callback(os.close, own)
    return own


def open_anew(memfd: int, undo: contextlib.ExitStack) -> int:
    """Whoever looks for data moves the fd's position, which must not be the VMM's; nor a successor's be, who
    may not be able to open the memfd any more, because the VMM has changed its mode.
    """
    try:
        own = os.open(f"/proc/self/fd/{memfd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise from_errno(
            error.errno or errno.EIO,
            f"cannot open the memfd anew for reading and writing: {error.strerror}",
        ) from None
    undo.callback(os.close, own)
    return own
