# SPDX-License-Identifier: GPL-2.0-or-later
"""The process beside the monitor's (engine/src/keep/keeper.h), and the table that both have."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from vmmswap.engine.native import ffi, lib, text_of

NO_FD = -1
_ENTRIES = 8192


class Kind(IntEnum):
    """What the keeper must know of an entry."""

    FD = lib.KEEPER_FD
    VM = lib.KEEPER_VM
    MESSAGE = lib.KEEPER_MESSAGE


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that a successor needs. fd: in our table; NO_FD: the fd store has it, or has been sent it."""

    kind: Kind
    name: str
    fd: int
    inode: int


class Table:
    """What is kept, in memory that the keeper shares. What does not fit is beyond what the fd store takes."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _ENTRIES * ffi.sizeof("struct keeper_entry"))
        self.entries = ffi.cast("struct keeper_entry *", ffi.from_buffer(self._memory))
        self.room = _ENTRIES
        self._places: dict[str, int] = {}
        self._used = 0  # places, from the first
        self._free: list[int] = []  # of those

    def put(self, entry: Entry) -> None:
        self.drop(entry.name)
        if self._free:
            place = self._free.pop()
        elif self._used < _ENTRIES:
            place = self._used
            self._used += 1
        else:
            return
        self._places[entry.name] = place
        slot = self.entries[place]
        slot.name = entry.name.encode() + b"\0"
        slot.fd = entry.fd
        slot.inode = entry.inode
        slot.kind = entry.kind  # last: from here on the entry counts

    def sent(self, name: str) -> None:
        """The entry has no fd any more."""
        place = self._places.get(name)
        if place is not None:
            self.entries[place].fd = NO_FD

    def drop(self, name: str) -> int:
        """Its fd, NO_FD for none."""
        place = self._places.pop(name, None)
        if place is None:
            return NO_FD
        self.entries[place].kind = lib.KEEPER_NOTHING
        self._free.append(place)
        return int(self.entries[place].fd)

    def names(self) -> list[str]:
        return list(self._places)

    def __iter__(self) -> Iterator[Entry]:
        for place in self._places.values():
            slot = self.entries[place]
            yield Entry(Kind(slot.kind), text_of(slot.name), slot.fd, slot.inode)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the keeper does once we are dead. notify_address: of the service manager that has the fd store;
    None: there is none, and it runs this program's command again, with two variables of the environment.
    """

    notify_address: str | None
    orphan_prefix: str
    fds_variable: str
    lives_variable: str


def start_keeper(table: Table, plan: Plan) -> int:
    """Its pid. Before any thread is started. OSError if there can be no such process."""
    command = [ffi.new("char[]", os.fsencode(word)) for word in (sys.executable, *sys.orig_argv[1:])]
    argv = ffi.new("char *[]", [*command, ffi.NULL])
    texts = {
        name: ffi.new("char[]", os.fsencode(text))
        for name, text in (
            ("orphan_prefix", plan.orphan_prefix),
            ("fds_variable", plan.fds_variable),
            ("lives_variable", plan.lives_variable),
            ("notify_address", plan.notify_address),
        )
        if text is not None
    }
    given = ffi.new("struct keeper_plan *", texts)
    given.entries = table.entries
    given.entries_n = table.room
    given.program = command[0]
    given.command = argv
    given.spare_fds = spares = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in given.spare_fds]
    pid = int(lib.keeper_start(given))
    if pid < 0:
        for fd in spares:
            os.close(fd)
        raise OSError(-pid, os.strerror(-pid))
    return pid
