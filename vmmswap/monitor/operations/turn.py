# SPDX-License-Identifier: GPL-2.0-or-later
"""A swap-out's turn among those of all VMs on the host: SwapOutsMax= of them run at a time.

Each that runs has one of as many locks (host_locks.py). What waits asks again some times a second, so the
next one is not always the one that has waited longest.

A swap-out that makes no progress for a minute, as on a disk that hangs, no longer counts: else some of them
would keep all other VMs from going out for as long as their disk hangs.

Only monitors that systemd has started take part: they have the directory (host_directory.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from vmmswap.monitor.host_directory import shared_directory
from vmmswap.monitor.host_locks import first_free

_log = logging.getLogger("vmmswap.turn")

_ASK_S = 0.2
_STUCK_S = 60.0


class Turn:
    """Of one VM. most(): SwapOutsMax=, 0 for any number. on_turn(): what has waited may begin. progress():
    equals what it was before if the swap-out has not come on.
    """

    def __init__(
        self, most: Callable[[], int], on_turn: Callable[[], None], progress: Callable[[], object]
    ) -> None:
        self._directory = shared_directory()
        self._most = most
        self._on_turn = on_turn
        self._progress = progress
        self._seen: object = None
        self._lock: int | None = None  # an fd
        self._watch: asyncio.TimerHandle | None = None  # while there is a lock
        self._timer: asyncio.TimerHandle | None = None
        self._told = ""

    @property
    def is_waiting(self) -> bool:
        return self._timer is not None

    def take(self) -> bool:
        """True if it is our turn now, until release(). Else on_turn() will be called, unless release() is."""
        if self._lock is None and self._timer is None and not self._may_begin():
            self._ask_later()
        return self._timer is None

    def release(self) -> None:
        """Nothing of ours runs or waits any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._unlock()

    # Inside

    def _unlock(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _look_later(self) -> None:
        self._seen = self._progress()
        self._watch = asyncio.get_running_loop().call_later(_STUCK_S, self._look)

    def _look(self) -> None:
        if self._progress() != self._seen:
            self._look_later()
            return
        _log.warning(
            "the swap-out has not come on for %g s (does its disk hang?): those of other VMs no longer wait"
            " for it",
            _STUCK_S,
        )
        self._unlock()

    def _ask_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_ASK_S, self._ask)

    def _ask(self) -> None:
        if self._may_begin():
            self._timer = None
            self._on_turn()
        else:
            self._ask_later()

    def _may_begin(self) -> bool:
        """A directory that cannot be used keeps nobody from swapping out."""
        most = self._most()
        if self._directory is None or not most:
            return True
        try:
            self._lock = first_free(self._directory, most)
        except OSError as error:
            self._tell(f"SwapOutsMax= has no effect: {self._directory}: {error.strerror}")
            return True
        if self._lock is not None:
            self._look_later()
        return self._lock is not None

    def _tell(self, what: str) -> None:
        if what != self._told:
            self._told = what
            _log.warning("%s", what)
