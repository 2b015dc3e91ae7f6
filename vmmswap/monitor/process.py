# SPDX-License-Identifier: GPL-2.0-or-later
"""One process of a served VM."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vmmswap.engine import Range
from vmmswap.monitor.keep.manifest import ProcessRecord


@dataclass(slots=True)
class Process:
    """One address space that the engine serves."""

    key: int  # in the fd store; outlives the engine's number
    process_id: int  # the engine's number
    pid: int  # 0: a forked child that has not been found
    pidfd: int  # ours; -1: none
    uffd: int  # to ask if it has gone
    owns_uffd: bool  # False: a forked child's, which belongs to the engine
    ranges: tuple[Range, ...]
    is_proven: bool = True
    dummy_page: int = 0  # address; 0: none
    is_forked: bool = False  # then its pid is a guess: children of one parent look the same
    has_gone: bool = False  # it has ended or called exec, and stays known as the former VMM

    @property
    def record(self) -> ProcessRecord:
        ranges = tuple((item.addr, item.page_idx, item.pages) for item in self.ranges)
        return ProcessRecord(self.key, self.pid, ranges, self.is_proven, self.dummy_page, self.is_forked)

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
        if self.owns_uffd:
            os.close(self.uffd)
