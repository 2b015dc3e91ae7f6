# SPDX-License-Identifier: GPL-2.0-or-later
"""A successor's turn to start, once it serves its guest.

Where all monitors of a host were killed, their successors start at once, and a guest waits until its own
serves. So those that serve leave the processors to the others: only as many start further at a time as there
are processors. None waits for long, because one that starts may hang and orders wait meanwhile, and none
with a forked child that nobody else knows of.

Only monitors that systemd has started take part: they have the directory (host_directory.py).
"""

from __future__ import annotations

import logging
import os
import select
import time

from vmmswap.monitor.host_directory import shared_directory
from vmmswap.monitor.host_locks import first_free

PREFIX = "start-"
_ASK_S = 0.1
_LONGEST_S = 20.0

_log = logging.getLogger("vmmswap.turn")


class StartTurn:
    """Of this process."""

    def __init__(self) -> None:
        self._lock: int | None = None

    def wait(self, event_fd: int, longest_s: float = _LONGEST_S) -> None:
        """Return when it is our turn, which it is until release(), when that has taken too long, or when
        event_fd is readable: the engine has something to report, such as a child whose userfaultfd nobody
        else has.
        """
        events = select.poll()
        events.register(event_fd, select.POLLIN)
        end_s = time.monotonic() + longest_s
        while not self._take():
            _log.debug("waiting for other monitors to start")
            if events.poll(_ASK_S * 1000) or time.monotonic() >= end_s:
                _log.debug("waiting no longer for other monitors to start")
                return

    def _take(self) -> bool:
        """A directory that cannot be used keeps nobody from starting."""
        directory = shared_directory()
        if directory is None:
            return True
        try:
            self._lock = first_free(directory, most(), PREFIX)
        except OSError as error:
            _log.warning("not waiting for other monitors to start: %s: %s", directory, error.strerror)
            return True
        return self._lock is not None

    def release(self) -> None:
        """We have started."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def most() -> int:
    """How many start at a time."""
    return len(os.sched_getaffinity(0))
