# SPDX-License-Identifier: GPL-2.0-or-later
"""What a hand-off or an attach gives us to serve. All fds stay the giver's to close."""

from __future__ import annotations

from dataclasses import dataclass

from vmmswap.engine import Mover
from vmmswap.handoff.region import Region
from vmmswap.linux.access import ROOT, User


@dataclass(frozen=True, slots=True)
class NewProcess:
    """A process to register. regions: memfd counts the VM's memfds. uffd: after UFFDIO_API, O_NONBLOCK."""

    pid: int
    pidfd: int
    uffd: int
    regions: tuple[Region, ...]
    dummy_page: int | None = None
    limits: tuple[str, ...] = ()  # features that it does not offer, and why, for people
    is_proven: bool = True  # its uffd was seen to stop kernel-mode accesses too


@dataclass(frozen=True, slots=True)
class NewVm:
    """A VM to register. connection: None if its end is not the VM's end. snapshot: the memory file that its
    private memory comes from. mover: of a VMM that moves its private memory. With either there are no memfds.
    """

    vmm: NewProcess
    memfds: tuple[int, ...]
    uid: int
    pins: bool = True
    qmp: str | None = None
    connection: int | None = None
    snapshot: int | None = None
    mover: Mover | None = None
    attached: bool = False
    forced: bool = False
    chosen: bool = False
    ordered_by: User = ROOT
