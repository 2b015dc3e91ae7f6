# SPDX-License-Identifier: GPL-2.0-or-later
"""What a monitor that was killed while it attached has left in a VMM: a thread that nobody asks.

Two monitors may attach to one VMM at the same time. Each holds a lock of its own mailbox's file, which is in
the VMM's fd table, until the VMM's memory is seen to be served (plant.dummy_pages()).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

from vmmswap.attach import plant
from vmmswap.attach.fd_table import fds_of_inode
from vmmswap.attach.mailbox import Mailbox
from vmmswap.attach.memory import mappings_of
from vmmswap.attach.target import Target
from vmmswap.engine.native import lib
from vmmswap.errors import BusyError
from vmmswap.linux.files import file_id_unasked

_NAME = "/memfd:vmmswap mailbox"


def remove_leftovers(target: Target, *, force: bool) -> None:
    """BusyError if another monitor is attaching right now."""
    for mailbox in _mailboxes(target):
        if _is_locked(mailbox):
            raise _busy(target)
        with Mailbox(mailbox) as view:
            is_ours = view.planting is not None
        if is_ours and not plant.dummy_pages(target.pid):
            plant.uproot(target, [], [], mailbox=mailbox, force=force)


def check_alone(target: Target, own: int) -> None:
    """BusyError if another monitor has begun to attach as we did. own: our mailbox."""
    known = file_id_unasked(own)
    for mailbox in _mailboxes(target):
        if file_id_unasked(mailbox) != known and _is_locked(mailbox):
            raise _busy(target)


def _busy(target: Target) -> BusyError:
    return BusyError(f"another monitor is attaching to {target} right now: try again later")


def _mailboxes(target: Target) -> Iterator[int]:
    """Fds, for as long as the caller looks at each, of the mailboxes that the process has."""
    for mapping in mappings_of(target.pid):
        if not mapping.path.startswith(_NAME) or mapping.size_bytes != lib.VMMSWAP_MAILBOX_BYTES:
            continue
        for fd in fds_of_inode(target, mapping.file.inode):
            try:
                if file_id_unasked(fd) == mapping.file:
                    yield fd
                    break
            finally:
                os.close(fd)


def _is_locked(mailbox: int) -> bool:
    own = os.open(f"/proc/self/fd/{mailbox}", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(own)
    return False
