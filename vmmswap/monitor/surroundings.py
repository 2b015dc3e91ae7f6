# SPDX-License-Identifier: GPL-2.0-or-later
"""What a served VM uses of its monitor."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from vmmswap.config import Config
from vmmswap.monitor.settings import Settings
from vmmswap.monitor.tracing import PageFaultLog
from vmmswap.monitor.write_budget import Place


@dataclass(frozen=True, slots=True)
class Surroundings:
    """barrier returns when the fd store has
    all that was sent. on_change is called after each change of the status; on_end when nothing is left to be
    done for the VM, which is to be closed then.
    """

    settings: Settings
    page_fault_log: PageFaultLog
    ledger: Place
    barrier: Callable[[], Awaitable[None]]
    on_change: Callable[[], None]
    on_end: Callable[[], None]

    @property
    def config(self) -> Config:
        """The current configuration: a reload changes it."""
        return self.settings.current
