# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a process's cgroups are, of version 1 and 2."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmmswap.linux.mounts import read_mounts
from vmmswap.linux.small_file import read_small


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted tree of cgroups, for one controller. is_unified: of version 2."""

    point: Path
    controller: str
    is_unified: bool


def hierarchies_of(controller: str) -> list[Hierarchy]:
    """All in which this controller may be: that of version 2 is listed wherever the controller is in use."""
    return [
        Hierarchy(mount.point, controller, mount.kind == "cgroup2")
        for mount in read_mounts(kinds=("cgroup", "cgroup2"))
        if mount.kind == "cgroup2" or (mount.kind == "cgroup" and controller in mount.options)
    ]


def groups_of(pid: int, hierarchy: Hierarchy) -> Sequence[Path]:
    """The directories of the process's cgroup and of all those around it, the root of the tree last. Empty if
    it is in none. OSError if the process has ended.
    """
    for line in read_small(f"/proc/{pid}/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        is_in_it = number == "0" if hierarchy.is_unified else hierarchy.controller in controllers.split(",")
        if is_in_it:
            return _with_those_around(hierarchy.point, path)
    return ()


@functools.lru_cache(maxsize=64)  # processes hardly ever change their cgroups
def _with_those_around(point: Path, path: str) -> tuple[Path, ...]:
    group = point / path.lstrip("/")
    found = []
    while group != point and point in group.parents:
        found.append(group)
        group = group.parent
    return (*found, point)
