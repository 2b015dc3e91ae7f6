# SPDX-License-Identifier: GPL-2.0-or-later
"""Who else has the memory's files: mappings and open fds of all processes."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from vmmswap.engine.native import ffi, lib
from vmmswap.errors import from_errno


@dataclass(frozen=True, slots=True)
class Mapper:
    """A process, and where it maps guest memory; file_idx: which of the memfds asked for."""

    pid: int
    addr: int
    size_bytes: int
    offset_bytes: int
    file_idx: int
    is_private: bool  # MAP_PRIVATE: no userfaultfd of it can bring the file's pages back


def _files_of(memfds: Sequence[int]) -> Any:  # noqa: ANN401 - cffi's objects have no static types
    files = ffi.new("struct mapped_file[]", max(1, len(memfds)))
    for idx, fd in enumerate(memfds):
        rc = lib.mappers_file_of(fd, ffi.addressof(files, idx))
        if rc < 0:
            raise from_errno(-rc, f"cannot look at fd {fd}: {os.strerror(-rc)}")
    return files


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has one of the memfds asked for open; file_idx: which."""

    pid: int
    fd: int  # in that process
    file_idx: int


def holders_of(memfds: Sequence[int]) -> list[Holder]:
    """Who has these files open, but for this process and those that share its fds. Processes whose fds may
    not be seen are left out.
    """
    found = ffi.new("struct holder_list *")
    rc = lib.holders_find(ffi.new("int[]", list(memfds)), len(memfds), found)
    if rc < 0:
        raise from_errno(-rc, f"cannot look through /proc: {os.strerror(-rc)}")
    try:
        return _holders(found)
    finally:
        lib.holders_free(found)


def _holders(found: Any) -> list[Holder]:  # noqa: ANN401 - cffi's objects have no static types
    return [
        Holder(int(item.pid), int(item.fd), int(item.file_idx))
        for item in (found.holders[idx] for idx in range(found.holders_n))
    ]


@dataclass(frozen=True, slots=True)
class SharedLook:
    """What a look that others may have made shows of some memfds. unshared: why others cannot use a look that
    was made for this, in words; empty: they can.
    """

    holders: list[Holder]
    mappers: list[int]
    unshared: str


def shared_holders(dir_fd: int, memfds: Sequence[int], max_age_s: float) -> SharedLook | None:
    """Who has these open now, as of holders_of(), by a look at all processes that began at most max_age_s
    ago, by anybody who shares this directory, or by a new one. None: look by oneself (shared_look.h says
    when).
    """
    return _shared(lib.LOOK_FDS, dir_fd, memfds, max_age_s)


def shared_mappers(dir_fd: int, memfds: Sequence[int], max_age_s: float) -> SharedLook | None:
    """The same for pids of processes that mapped one of these when it was looked."""
    return _shared(lib.LOOK_MAPS, dir_fd, memfds, max_age_s)


def _shared(kind: int, dir_fd: int, memfds: Sequence[int], max_age_s: float) -> SharedLook | None:
    found = ffi.new("struct shared_look *")
    numbers = ffi.new("int[]", list(memfds))
    if lib.shared_look(dir_fd, kind, numbers, len(memfds), int(max_age_s * 1e9), found) < 0:
        return None
    try:
        mappers = [int(found.mappers.pids[idx]) for idx in range(found.mappers.pids_n)]
        unshared = os.strerror(found.unshared) if found.unshared else ""
        return SharedLook(_holders(found.holders), mappers, unshared)
    finally:
        lib.shared_look_free(found)


def mappers_of(memfds: Sequence[int], pids: Collection[int] | None = None) -> tuple[list[Mapper], list[int]]:
    """All mappings of these files in other processes, or in these, and the pids whose maps cannot be read."""
    found = ffi.new("struct mapper_list *")
    if pids is None:
        return _found(lib.mappers_find(_files_of(memfds), len(memfds), found), found)
    numbers = ffi.new("pid_t[]", sorted(pids) or [0])
    among = ffi.new("struct pid_list *", {"pids": numbers, "pids_n": len(pids)})
    return _found(lib.mappers_among(among, _files_of(memfds), len(memfds), found), found)


class MapperWatch:
    """As mappers_of(), for whoever looks again and again: reads the maps only of processes that have
    changed, and of the others in turn. One look at a time.
    """

    def __init__(self) -> None:
        out = ffi.new("struct mapper_watch **")
        if lib.mapper_watch_create(out) < 0:
            raise MemoryError
        self._watch = ffi.gc(out[0], lib.mapper_watch_destroy)

    def look(self, memfds: Sequence[int]) -> tuple[list[Mapper], list[int]]:
        found = ffi.new("struct mapper_list *")
        return _found(lib.mapper_watch_look(self._watch, _files_of(memfds), len(memfds), found), found)


def _found(rc: int, found: Any) -> tuple[list[Mapper], list[int]]:  # noqa: ANN401 - cffi's objects have no static types
    try:
        if rc < 0:
            raise from_errno(-rc, f"cannot look through /proc: {os.strerror(-rc)}")
        mappings = [
            Mapper(
                *(int(m.pid), int(m.addr), int(m.size_bytes), int(m.offset_bytes), int(m.file_idx)),
                bool(m.is_private),
            )
            for m in (found.mappings[i] for i in range(found.mappings_n))
        ]
        unreadable = [int(found.unreadable.pids[i]) for i in range(found.unreadable.pids_n)]
    finally:
        lib.mappers_free(found)
    return mappings, unreadable
