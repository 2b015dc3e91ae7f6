# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept for a successor besides the fd store, by a process that outlives a killed monitor.

engine/src/keep/keeper.h says why there must be one, and what it does.
"""

from __future__ import annotations

import fcntl
import os

from vmmswap.engine.keeper import NO_FD, Entry, Kind, Plan, Table, start_keeper
from vmmswap.linux import closing

MANIFEST = "manifest"  # nothing is kept of a VM that has none: it never was registered
MESSAGE = "message"  # a VM was registering that will not say so again
ORPHAN = "uffd-orphan-"

_KEPT = "VMMSWAP_KEPT_FDS"  # NAME=FD,NAME=FD,... for the successor that a keeper becomes
_LIVES = "VMMSWAP_KEPT_LIVES"  # how many successors in a row lived shortly


class Keeper:
    """The monitor's side. notify_address: of the service manager with the fd store; None: there is none."""

    def __init__(self, notify_address: str | None) -> None:
        self._notify_address = notify_address
        self._table = Table()

    def start(self) -> int:
        """Its pid. Before any thread is started. OSError if there can be no such process."""
        return start_keeper(self._table, Plan(self._notify_address, ORPHAN, _KEPT, _LIVES))

    def keep(self, name: str, fd: int, *, unsent: int = NO_FD) -> None:
        """The fd store has a duplicate, or will have one once `unsent`, which stays the caller's, is sent.
        Where there is no fd store, make a duplicate here.
        """
        own = unsent if self._notify_address else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        self.forget(name)
        self._table.put(Entry(_kind_of(name), name, own, os.fstat(fd).st_ino))

    def stored(self, name: str) -> None:
        """What was unsent has been sent."""
        self._table.sent(name)

    def forget(self, name: str) -> None:
        fd = self._table.drop(name)
        if fd >= 0 and not self._notify_address:
            closing.close(fd)

    def forget_all(self) -> None:
        for name in self._table.names():
            self.forget(name)


def _kind_of(name: str) -> Kind:
    if name == MANIFEST:
        return Kind.VM
    return Kind.MESSAGE if name == MESSAGE else Kind.FD


def inherited() -> dict[str, int]:
    """For the successor that a keeper has become: what it keeps, by name. Only the first call gives it."""
    given = os.environ.pop(_KEPT, "")
    found: dict[str, int] = {}
    for item in filter(None, given.split(",")):
        name, _, fd = item.partition("=")
        found[name] = int(fd)
        os.set_inheritable(int(fd), False)
    return found


def take_orphans(kept: dict[str, int]) -> dict[str, int]:
    """Take the userfaultfds that a keeper stored out of `kept`. Not those that are there by another name too:
    they were stored when the monitor was killed before it could note it.
    """
    known = {os.fstat(fd).st_ino for name, fd in kept.items() if not name.startswith(ORPHAN)}
    names = [
        name for name, fd in kept.items() if name.startswith(ORPHAN) and os.fstat(fd).st_ino not in known
    ]
    return {name: kept.pop(name) for name in names}
