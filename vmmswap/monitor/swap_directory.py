# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks the swap directory before there is a VM: whether it can hold what goes out, and whether that gains
memory.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

from vmmswap.errors import NotSupportedError, StorageFailedError
from vmmswap.file_system import ON_RAM, kind_of


def check_swap_dir(path: Path) -> None:
    """StorageFailedError or NotSupportedError unless an unnamed file can be made there."""
    try:
        fd = os.open(path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise StorageFailedError(
            f"the swap directory {path} does not exist: make it, or give --swap-dir"
        ) from None
    except NotADirectoryError:
        raise StorageFailedError(f"the swap directory {path} is not a directory") from None
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):
            raise NotSupportedError(
                f"the file system of the swap directory {path} has no unnamed files (O_TMPFILE): use ext4,"
                " xfs or btrfs"
            ) from None
        raise StorageFailedError(
            f"cannot make a file in the swap directory {path}: {error.strerror}"
        ) from None
    kind = kind_of(fd)
    os.close(fd)
    if kind in ON_RAM:
        logging.getLogger("vmmswap").warning(
            "the swap directory %s is on %s: what is swapped out stays on RAM, so no memory is gained."
            " Set SwapDirectory= to a directory on a disk",
            path,
            kind,
        )
