# SPDX-License-Identifier: GPL-2.0-or-later
"""How much memory there is for pages to come back to.

A page that is brought back is charged to the cgroup of the process that it is copied into. At a cgroup's
limit the kernel kills somebody there, the VMM most likely; and without a limit, on the whole host. So before
and during a swap-in we look at MemAvailable and at the limits of each cgroup around the VMM's processes, and
stop above a reserve.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.linux.cgroup import Hierarchy, groups_of, hierarchies_of
from vmmswap.linux.memory import meminfo_bytes
from vmmswap.linux.small_file import read_small
from vmmswap.monitor.guard import Failures

_log = logging.getLogger("vmmswap.headroom")

_MIB = 1 << 20
_UNLIMITED = 1 << 62  # v1 shows no limit as a number close to 2^63
_RESERVE_SHARE = 16
_HOST_RESERVE_MAX = 256 * _MIB
_CGROUP_RESERVE_MIN, _CGROUP_RESERVE_MAX = 8 * _MIB, 64 * _MIB  # a swap-in overshoots by some chunks

_WINDOW_BYTES = 2 * _MIB  # what a worker of a swap-in takes at a time, at most
_FASTEST_SWAP_IN_BYTES_S = 4 << 30
_SHORTEST_S, _LONGEST_S = 0.005, 0.5  # time between two looks

AT_ONCE = 64  # processes to look at on the event loop: a look at one reads a file of /proc


@dataclass(frozen=True, slots=True)
class Headroom:
    """How much can be brought in before the tightest limit's reserve is touched; negative: it is touched."""

    bytes: int
    limit: str  # which one, for people


def find_hierarchies() -> list[Hierarchy]:
    """Where memory is limited: the first of each version counts."""
    found: dict[bool, Hierarchy] = {}
    for hierarchy in hierarchies_of("memory"):
        found.setdefault(hierarchy.is_unified, hierarchy)
    return list(found.values())


def look(pids: Iterable[int], hierarchies: Sequence[Hierarchy]) -> Headroom:
    """The tightest of the host and these processes' cgroups. Processes that are gone are passed over."""
    groups = {group for pid in pids for group in _groups_of(pid, hierarchies)}
    rooms = [_host(), *(room for group in sorted(groups) if (room := _group(group)))]
    return min(rooms, key=lambda room: room.bytes)


def _host() -> Headroom:
    total, available = meminfo_bytes("MemTotal", "MemAvailable")
    reserve = min(_HOST_RESERVE_MAX, total // _RESERVE_SHARE)
    return Headroom(available - reserve, f"the host has {available // _MIB} MiB available")


def _groups_of(pid: int, hierarchies: Sequence[Hierarchy]) -> list[Path]:
    """The directories of a process's cgroups and of all those around them."""
    try:
        return [group for hierarchy in hierarchies for group in groups_of(pid, hierarchy)]
    except OSError:
        return []


def _group(group: Path) -> Headroom | None:
    """None if the cgroup sets no limit."""
    limits = [
        value
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
        if (value := _number(f"{group}/{name}")) is not None and value < _UNLIMITED
    ]
    if not limits:
        return None
    usage = _number(f"{group}/memory.current")
    usage = _number(f"{group}/memory.usage_in_bytes") if usage is None else usage
    if usage is None:
        return None
    limit = min(limits)
    free = limit - usage + _reclaimable(group)
    reserve = max(_CGROUP_RESERVE_MIN, min(_CGROUP_RESERVE_MAX, limit // _RESERVE_SHARE))
    return Headroom(
        free - reserve,
        f"the cgroup {group} has {max(0, free) // _MIB} MiB left of its limit of {limit // _MIB} MiB",
    )


def _number(path: str) -> int | None:
    """None where there is no such file, no limit ("max"), or no right to look."""
    try:
        text = read_small(path).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _reclaimable(group: Path) -> int:
    """Page cache that the kernel drops before it kills: all that is inactive, half of what is active."""
    try:
        lines = read_small(f"{group}/memory.stat").splitlines()
    except OSError:
        return 0
    stat = {key: int(value) for key, _, value in (line.partition(" ") for line in lines)}
    prefix = "total_" if "total_inactive_file" in stat else ""
    return stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0) // 2


class RoomWatch:
    """Looks at the headroom while a swap-in runs, and calls on_short when it is used up.

    out_pages: how many pages are out, those that cannot be read now included: they may be readable again.

    Between two looks the swap-in may use half of what there was, which `grant` tells the engine in pages:
    however late the next look comes, no limit is run into.
    """

    def __init__(
        self,
        pids: Callable[[], list[int]],
        out_pages: Callable[[], int],
        grant: Callable[[int], None],
        on_short: Callable[[], None],
    ) -> None:
        self._pids = pids
        self._out_pages = out_pages
        self._grant = grant
        self._on_short = on_short
        self._hierarchies = find_hierarchies()
        self._room = Headroom(0, "")
        self._is_whole = True  # all processes were looked at
        self._watching: asyncio.Task[None] | None = None

    @property
    def message(self) -> str:
        """Why there is not enough, for people."""
        return (
            f"not enough memory to swap all in: {self._room.limit}; what is out is still served, and the rest"
            " follows when there is more"
        )

    @property
    def limit(self) -> str:
        """The tightest limit at the last look, for people."""
        return self._room.limit

    def has_room(self) -> bool:
        """Look before a swap-in starts, and grant what may be used until the next look: not nothing, where
        this is True. Where there are very many processes, only some are looked at, and only one window is
        granted: the next look, on a thread, follows at once.
        """
        pids = self._pids() if self._out_pages() else []
        return self._take(look(pids[:AT_ONCE], self._hierarchies), is_whole=len(pids) <= AT_ONCE)

    def start(self) -> None:
        """After has_room()."""
        self._watching = asyncio.get_running_loop().create_task(self._watch(), name="headroom")

    def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    def _take(self, room: Headroom, *, is_whole: bool = True) -> bool:
        self._room, self._is_whole = room, is_whole
        out_bytes = self._out_pages() * PAGE_SIZE
        if out_bytes == 0:  # nothing to bring in: what is left is to stop tracking
            return True
        if room.bytes < 2 * min(out_bytes, _WINDOW_BYTES):
            self._grant(0)
            return False
        half_bytes = room.bytes // 2
        self._grant((half_bytes if is_whole else min(half_bytes, _WINDOW_BYTES)) // PAGE_SIZE)
        return True

    def _delay_s(self) -> float:
        """Until the next look: before the fastest swap-in could have used half of what there is, so that it
        never has to wait for that.
        """
        if not self._is_whole:
            return 0.0
        enough = self._room.bytes // 2 >= self._out_pages() * PAGE_SIZE
        delay_s = _LONGEST_S if enough else self._room.bytes / 2 / _FASTEST_SWAP_IN_BYTES_S
        return min(_LONGEST_S, max(_SHORTEST_S, delay_s))

    async def _watch(self) -> None:
        failures = Failures("cannot find out how much memory there is; trying again")
        delay_s = self._delay_s()
        while True:
            await asyncio.sleep(delay_s)
            try:
                room = await asyncio.to_thread(look, self._pids(), self._hierarchies)
            except Exception as error:  # whatever failed: the swap-in waits for what it is granted
                failures.log(error)
                delay_s = _LONGEST_S
                continue
            if not self._take(room):
                break
            delay_s = self._delay_s()
        self._watching = None
        self._on_short()
