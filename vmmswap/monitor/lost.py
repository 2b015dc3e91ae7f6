# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports lost pages: pages that were out, and that somebody else filled in the memory's file.

One access from outside can lose 512 pages, and they are found one by one. So pages found within a while, or
in one operation, share one journal entry with their ranges.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from vmmswap import message_ids
from vmmswap.engine import Engine
from vmmswap.log import fields
from vmmswap.monitor.pages import as_field, described

_log = logging.getLogger("vmmswap.monitor")

_QUIET_S = 2.0
_LONGEST_S = 60.0  # while an operation runs; its end reports all


class LostReport:
    """Reports the lost pages of one VM's engine. where(page_idx): describes a page for people. on_lost:
    called after each report.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        where: Callable[[int], str],
        is_busy: Callable[[], bool],
        on_lost: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._where = where
        self._is_busy = is_busy
        self._on_lost = on_lost
        self._timer: asyncio.TimerHandle | None = None

    def found(self) -> None:
        """The engine has found lost pages, and may find more."""
        if self._timer is None:
            delay_s = _LONGEST_S if self._is_busy() else _QUIET_S
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.report)

    def report(self) -> None:
        """Report pages that were found and not reported yet."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        lost = self._engine.take_lost()
        if not lost.pages:
            return
        _log.error(
            "%d pages of guest memory are lost: something other than this monitor filled their place in"
            " the memory's file while they were out. The guest reads what was put there, zeros as a rule"
            " (%s). Restart the VM; `journalctl -x` says what to look for",
            lost.pages,
            described(lost, self._where),
            extra=fields(
                "",
                message_ids.PAGES_LOST,
                vmmswap_lost_pages=lost.pages,
                vmmswap_lost_ranges=as_field(lost),
            ),
        )
        self._on_lost()
