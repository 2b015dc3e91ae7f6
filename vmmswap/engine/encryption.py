# SPDX-License-Identifier: GPL-2.0-or-later
"""How well this host can encrypt what goes to disk."""

from __future__ import annotations

import fcntl

from vmmswap.engine.native import lib


def is_fast() -> bool:
    """False if libcrypto must do without the processor's AES instructions."""
    return bool(lib.seal_is_fast())


def is_secret(key_fd: int) -> bool:
    """True if the key is in a page of memfd_secret(2), which supports no seals; False: in a locked memfd."""
    try:
        fcntl.fcntl(key_fd, fcntl.F_GET_SEALS)
    except OSError:
        return True
    return False
