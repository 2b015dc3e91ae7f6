# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel says of memory: a guest's, the host's, a control group's. Nothing of our own counting."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from vmmswap.linux.cgroup import groups_of, hierarchies_of
from vmmswap.linux.memory import meminfo_bytes

_BLOCK_BYTES = 512  # unit of st_blocks, whatever the file system


@dataclass(frozen=True, slots=True)
class MemorySample:
    """All in bytes, at one moment."""

    guest: int  # allocated by the memfds of the guest
    available: int  # MemAvailable of the host
    charge: int | None  # of the guest's control group; None where it has none


def sample(vmm_pid: int) -> MemorySample:
    """What the kernel says now about the memory of this VMM and this host."""
    return MemorySample(memfd_bytes(vmm_pid), available_bytes(), charge_bytes(vmm_pid))


def memfd_bytes(pid: int) -> int:
    """What all memfds that a process has open take up, each counted once."""
    found: dict[tuple[int, int], int] = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if str(link.readlink()).startswith("/memfd:"):
                status = link.stat()
                found[status.st_dev, status.st_ino] = status.st_blocks * _BLOCK_BYTES
        except FileNotFoundError:
            continue  # closed between the listing and the look
    return sum(found.values())


def available_bytes() -> int:
    """MemAvailable: what new work could get without swapping."""
    return meminfo_bytes("MemAvailable")[0]


def charge_bytes(pid: int) -> int | None:
    """What the memory controller charges to a process's control group, version 2 or 1."""
    for hierarchy in hierarchies_of("memory"):
        name = "memory.current" if hierarchy.is_unified else "memory.usage_in_bytes"
        for group in groups_of(pid, hierarchy)[:1]:
            with contextlib.suppress(FileNotFoundError, ValueError):
                return int((group / name).read_text(encoding="ascii"))
    return None
