# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that somebody wants attached: pinned down by a pidfd, and whose it is."""

from __future__ import annotations

import os
import select
from pathlib import Path
from types import TracebackType

from vmmswap.bus.dispatch import Caller
from vmmswap.errors import AccessDeniedError, NotSupportedError
from vmmswap.linux.access import ROOT, User, check_process, user_of

_INT32_MAX = 2**31 - 1


def user_behind(caller: Caller) -> User:
    """Whom a caller's wishes are measured by. AccessDeniedError if it is not one user's process alone."""
    return ROOT if caller.uid == 0 else user_of(caller.pid, caller.uid)


class HeldProcess:
    """A process, held by a pidfd while it is looked at. A context manager that closes the pidfd."""

    def __init__(self, pid: int) -> None:
        if not 0 < pid <= _INT32_MAX:
            raise NotSupportedError(f"pid {pid} is not a process id: give the VMM's")
        self.pid = pid
        try:
            self.pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise NotSupportedError(
                f"cannot attach to pid {pid}: {error.strerror}. Is it the VMM's?"
            ) from error

    def __enter__(self) -> HeldProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.pidfd)

    def check_owned_by(self, caller: Caller) -> None:
        """AccessDeniedError unless the caller is root, or may trace the process himself (see access), in his
        user namespace.

        polkit cannot grant more: whoever attaches sees all of the process's memory. The monitor asks again
        while it holds the process, and applies Yama's rule, whose setting is hidden from this unit.
        """
        self._check_alive()
        user = user_behind(caller)
        if user.is_root:
            return
        check_process(self.pid, user)
        if self._user_namespace(self.pid) != self._user_namespace(caller.pid):
            raise AccessDeniedError(
                f"uid {caller.uid} may not attach to pid {self.pid}: it is in another user namespace"
            )
        self._check_alive()

    def _user_namespace(self, pid: int) -> tuple[int, int]:
        try:
            found = Path(f"/proc/{pid}/ns/user").stat()
        except OSError as error:
            raise AccessDeniedError(
                f"cannot see the user namespace of pid {pid}: {error.strerror}"
            ) from error
        return found.st_dev, found.st_ino

    def _check_alive(self) -> None:
        """What was read under /proc is of this process only if it still lives: pids are used again."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if poll.poll(0):
            raise NotSupportedError(f"cannot attach to pid {self.pid}: it has ended")
