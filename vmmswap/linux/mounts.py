# SPDX-License-Identifier: GPL-2.0-or-later
"""What is mounted where: /proc/PID/mountinfo."""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mount:
    """options: of the file system, as a cgroup's controllers."""

    mount_id: int
    dev: int
    point: Path
    kind: str
    options: tuple[str, ...]


def read_mounts(pid: int | None = None, kinds: Container[str] | None = None) -> list[Mount]:
    """Of a process's mount namespace; None: of ours. kinds: only those; a host may have hundreds of others.
    OSError if it may not be read.
    """
    text = Path(f"/proc/{pid or 'self'}/mountinfo").read_text(errors="replace")
    return [_mount(line) for line in text.splitlines() if kinds is None or _kind(line) in kinds]


def _kind(line: str) -> str:
    return line.partition(" - ")[2].partition(" ")[0]


def _mount(line: str) -> Mount:
    """Source of the format: proc_pid_mountinfo(5). Fields of any number stand before the dash."""
    before, _, after = line.partition(" - ")
    mount_id, _, device, _, point, *_ = before.split(" ")
    kind, _, options = after.split(" ", 2)
    major, minor = map(int, device.split(":"))
    path = Path(point.replace("\\040", " "))
    return Mount(int(mount_id), os.makedev(major, minor), path, kind, tuple(options.split(",")))
