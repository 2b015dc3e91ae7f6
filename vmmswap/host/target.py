# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that somebody wants attached: pinned down by a pidfd, and whose it is."""

from __future__ import annotations

import os
import select
from pathlib import Path
from types import TracebackType

from vmmswap.bus.dispatch import Caller
from vmmswap.errors import AccessDeniedError, NotSupportedError

_INT32_MAX = 2**31 - 1


class Target:
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

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.pidfd)

    def uids(self) -> set[int]:
        """Its real, effective, saved and file system uids."""
        try:
            text = Path(f"/proc/{self.pid}/status").read_text(errors="replace")
        except OSError as error:
            raise NotSupportedError(f"cannot attach to pid {self.pid}: {error.strerror}") from error
        self._check_alive()
        [line] = [line for line in text.splitlines() if line.startswith("Uid:")]
        return {int(field) for field in line.split()[1:]}

    def check_owned_by(self, caller: Caller) -> None:
        """AccessDeniedError unless the caller is root, or all uids are his, in his user namespace.

        polkit cannot grant more: whoever attaches sees all of the process's memory.
        """
        self._check_alive()
        if caller.uid == 0:
            return
        uids = self.uids()
        if uids != {caller.uid}:
            raise AccessDeniedError(
                f"uid {caller.uid} may not attach to pid {self.pid}, whose uids are {sorted(uids)}"
            )
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
