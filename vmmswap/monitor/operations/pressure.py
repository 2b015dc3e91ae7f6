# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells the engine when the host is short of memory: then what is out moves from the RAM tier to disk.

Two signs, each enough. Less memory is free than the reserve that a swap-in leaves (headroom.py): on the
host, or below a limit of a cgroup around the processes of the VM or around us, who pay for the RAM tier.
Tasks of the host or of such a cgroup waited for memory for a tenth of the last ten seconds: PSI, of cgroups
only of version 2.

Nobody looks while no job runs and nothing is in RAM that could go to disk. While nothing happens, and a lot
of memory is left, looks are as rare as the VM's other ones (pulse.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from vmmswap.engine import Engine, Job
from vmmswap.linux.cgroup import Hierarchy, groups_of
from vmmswap.linux.memory import meminfo_bytes
from vmmswap.linux.small_file import read_small
from vmmswap.monitor.guard import guarded
from vmmswap.monitor.operations.headroom import find_hierarchies, look
from vmmswap.monitor.pulse import Pulse

_log = logging.getLogger("vmmswap.pressure")

_LOOK_S = 2.0
_FAR = 8  # part of the host's memory that is left beyond the reserve: pressure is far
_HOST = Path("/proc/pressure/memory")
_STALLED_PERCENT = 10.0
_SOME = re.compile(r"^some avg10=(?P<percent>[0-9.]+) ", re.MULTILINE)


def why_short(pids: Iterable[int], hierarchies: Sequence[Hierarchy], host: Path = _HOST) -> str:
    """Why memory is short for these processes, for people; empty: it is not."""
    return _look(list(pids), hierarchies, host)[0]


def _look(pids: Sequence[int], hierarchies: Sequence[Hierarchy], host: Path = _HOST) -> tuple[str, bool]:
    """Why memory is short, and if it will not be soon."""
    known = [*pids, os.getpid()]
    room = look(known, hierarchies)
    if room.bytes < 0:
        return room.limit, False
    why = _who_waits(known, hierarchies, host)
    return why, not why and room.bytes > meminfo_bytes("MemTotal")[0] // _FAR


def _far_or_none(pids: Sequence[int], hierarchies: Sequence[Hierarchy]) -> bool | None:
    return _look(pids, hierarchies)[1] or None


def _who_waits(pids: Sequence[int], hierarchies: Sequence[Hierarchy], host: Path) -> str:
    groups = {
        group
        for pid in pids
        for hierarchy in hierarchies
        if hierarchy.is_unified
        for group in _groups(pid, hierarchy)
    }
    paths = [str(host), *(f"{group}/memory.pressure" for group in sorted(groups))]
    for path in paths:
        if (percent := _stalled_percent(path)) >= _STALLED_PERCENT:
            return f"tasks waited for memory for {percent:g}% of the last ten seconds, says {path}"
    return ""


def _groups(pid: int, hierarchy: Hierarchy) -> Sequence[Path]:
    try:
        return groups_of(pid, hierarchy)
    except OSError:  # it has ended
        return ()


def _stalled_percent(path: str) -> float:
    """0 where the kernel does not count it."""
    try:
        found = _SOME.search(read_small(path))
    except OSError:
        return 0.0
    return float(found["percent"]) if found else 0.0


class PressureWatch:
    """Of one VM. pids: of its processes."""

    def __init__(self, engine: Engine, pulse: Pulse, pids: Callable[[], list[int]]) -> None:
        self._engine = engine
        self._pulse = pulse
        self._is_far = False
        self._pids = pids
        self._hierarchies = find_hierarchies()
        self._has_tiers = engine.tier_fds.ram >= 0 and engine.tier_fds.disk >= 0
        self._task: asyncio.Task[None] | None = None
        self._why = ""

    @property
    def is_looking(self) -> bool:
        """True if a look is to come."""
        return self._task is not None and not self._task.done()

    def look_on(self) -> None:
        """A job may have begun: look from now on."""
        if self._has_tiers and not self.is_looking:
            self._task = asyncio.get_running_loop().create_task(self._work(), name="pressure")

    def stop(self) -> None:
        """Look no more."""
        self._has_tiers = False
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def glance(self) -> Callable[[], object]:
        """For Glance, while this watch waits for a change."""
        if not (self.is_looking and self._is_far):
            return lambda: False
        return partial(_far_or_none, self._pids(), self._hierarchies)

    async def _work(self) -> None:
        while True:
            if self._is_far:
                await self._pulse.change()
            else:
                await asyncio.sleep(_LOOK_S)
            stats = self._engine.stats()
            if stats.job is Job.NONE and not stats.stored_ram_bytes:
                self._tell("")
                return
            with guarded("cannot look how much memory the host has"):
                look = self._pulse.together.ask(_look, self._pids(), self._hierarchies)
                why, self._is_far = await look
                self._tell(why)

    def _tell(self, why: str) -> None:
        if bool(why) == bool(self._why):
            return
        self._why = why
        self._engine.host_is_short(bool(why))
        if why:
            _log.warning("memory is short: %s; what is out moves from RAM to disk", why)
        else:
            _log.info("memory is no longer short")
