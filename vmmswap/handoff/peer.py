# SPDX-License-Identifier: GPL-2.0-or-later
"""Who sent a message. SO_PEERCRED and SO_PEERPIDFD only tell who connected, which may be a parent that is
gone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from vmmswap.errors import AccessDeniedError, ProtocolError
from vmmswap.handoff import fds
from vmmswap.handoff.ancillary import Credentials
from vmmswap.linux.owned import OwnedFds
from vmmswap.linux.process import status_of


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that sent a message. The pidfd belongs to whoever owns the message."""

    pidfd: int
    pid: int
    uid: int  # real, at the time of sending
    gid: int


def identify(credentials: Credentials | None, pidfd: OwnedFds) -> Peer:
    """The sender, by SCM_PIDFD where the kernel gave one, else by its pid and a second look.

    `pidfd` holds the pidfd afterwards. ProtocolError if the sender is gone or out of our sight.
    """
    if credentials is None or credentials.pid <= 0:
        raise ProtocolError(
            "the kernel does not tell who sent this: the sender must live in our pid namespace"
        )
    if len(pidfd) == 0:
        pidfd.add(_open(credentials))
    pid = fds.pid_of(pidfd[0], "sender")
    if pid != credentials.pid:
        raise ProtocolError(f"sender: credentials say pid {credentials.pid}, the pidfd says {pid}")
    return Peer(pidfd[0], pid, credentials.uid, credentials.gid)


def _open(credentials: Credentials) -> int:
    """A pidfd by number. The number may be another process's by now: look again whether it is the same
    user's.

    What a recycled pid can still pass, the check of its maps refuses: it does not map the sender's memfds.
    """
    try:
        pidfd = os.pidfd_open(credentials.pid)
    except ProcessLookupError:
        raise ProtocolError(f"sender: the process {credentials.pid} has ended") from None
    try:
        if credentials.uid not in uids_of(credentials.pid):
            raise AccessDeniedError(f"sender: the process {credentials.pid} is not of uid {credentials.uid}")
    except BaseException:
        os.close(pidfd)
        raise
    return pidfd


def uids_of(pid: int) -> frozenset[int]:
    """Real, effective, saved and file system uid of a process."""
    try:
        return frozenset(map(int, status_of(pid).get("Uid", "").split()))
    except (FileNotFoundError, ProcessLookupError):
        raise ProtocolError(f"the process {pid} has ended") from None
