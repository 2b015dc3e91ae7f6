# SPDX-License-Identifier: GPL-2.0-or-later
"""Charges what the engine writes to disk to the VM's ledger, and lets it write within WriteBudgetPerDay=."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmmswap.config import Config
from vmmswap.config_values import SEGMENT_BYTES, in_bytes
from vmmswap.engine import Engine
from vmmswap.errors import NoSpaceError, NoSuchVMError
from vmmswap.monitor import ledger
from vmmswap.monitor.guard import Failures
from vmmswap.monitor.ledger import DamagedError, Ledger
from vmmswap.monitor.pulse import Pulse

_log = logging.getLogger("vmmswap.budget")

_LOAD_LIMIT_S = 5.0  # how long a swap-out waits for the ledger of a slow disk
_HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class Place:
    """Where a VM's ledger is, and the directory whose file system a percentage is of."""

    path: Path
    swap_dir: Path


class WriteBudget:
    """Of one VM, until close(). Until the ledger is read, nothing may be written, if there is a budget."""

    def __init__(self, engine: Engine, pulse: Pulse, place: Place, config: Callable[[], Config]) -> None:
        self._engine = engine
        self._pulse = pulse
        self._place = place
        self._config = config
        self._counter = _counter_of(engine)
        self._ledger: Ledger | None = None
        self._text = ""  # of the ledger, to be saved
        self._saving = threading.Lock()
        self._saved = ""
        self._told = ""
        self._known_for = ""  # the text of a budget, which is
        self._day = 0  # so many bytes
        self._max_bytes = 0  # up to where the engine may write, if there is a budget
        if config().has_write_budget:
            engine.limit_writes(0)
        self._loaded = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._work(), name="write budget")

    async def ready(self) -> None:
        """Before a swap-out: until the budget is known, if there is one and the disk answers."""
        if self._config().has_write_budget:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._loaded.wait(), _LOAD_LIMIT_S)

    def check_flush(self) -> None:
        """NoSpaceError if not even one segment may be written now."""
        config = self._config()
        if config.has_write_budget and self._max_bytes - self._engine.written_bytes < SEGMENT_BYTES:
            raise NoSpaceError(
                f"{self.written_today() >> 20} MiB were written to disk for the VM within a day:"
                f" WriteBudgetPerDay={config.write_budget_per_day} is used up; wait, or raise it"
            )

    def written_today(self) -> int:
        """WrittenTodayBytes."""
        if self._ledger is None:
            return 0
        now = _now_hour()
        self._ledger.settle_clock(now)
        self._charge(now)
        return self._ledger.written_today(now)

    def close(self) -> None:
        """The engine is about to end, and writes nothing more that would not be charged. save() writes down
        what was not.
        """
        self._task.cancel()
        with contextlib.suppress(NoSuchVMError):
            self._engine.limit_writes(0)
            self.written_today()

    def save(self) -> None:
        """Waits for the disk: on a thread, or before the process ends."""
        with self._saving:
            text = self._text
            if text == self._saved:
                return
            try:
                ledger.write(self._place.path, text)
            except OSError as error:
                self._tell(f"the ledger {self._place.path} cannot be written: {error.strerror}")
                return
            self._saved, self._told = text, ""

    # Inside

    async def _work(self) -> None:
        """For ever, whatever fails: while nobody looks, the budget never comes back."""
        failures = Failures("the ledger of bytes written is not kept")
        while True:
            try:
                await self._keep()
            except Exception as error:
                failures.log(error)
                self._pulse.forget()
            if self._is_settled:
                await self._pulse.change()
            else:
                await self._pulse.beat()

    @property
    def _is_settled(self) -> bool:
        """True if there is nothing to do while nothing is written. A budget comes back by the hour."""
        return self._ledger is not None and self._text == self._saved and not self._config().has_write_budget

    async def _keep(self) -> None:
        if self._ledger is None:
            self._ledger = await asyncio.to_thread(self._load)
        if self._ledger is None:
            return
        config = self._config()
        if config.write_budget_per_day != self._known_for or (config.has_write_budget and not self._day):
            self._known_for = config.write_budget_per_day
            self._day = await asyncio.to_thread(self._day_bytes)
        self._look(self._day, has_budget=self._config().has_write_budget)
        self._loaded.set()
        if self._text != self._saved:
            await asyncio.to_thread(self.save)

    def _look(self, day_bytes: int, *, has_budget: bool) -> None:
        if self._ledger is None:
            return
        today = self.written_today()
        if not has_budget:
            self._engine.limit_writes(None)
            return
        self._max_bytes = self._ledger.counted_bytes + max(0, day_bytes - today)
        self._engine.limit_writes(self._max_bytes)

    def _charge(self, now_hour: int) -> None:
        if self._ledger is not None and self._ledger.charge(
            self._counter, self._engine.written_bytes, now_hour
        ):
            self._text = self._ledger.to_text()

    def _load(self) -> Ledger | None:
        """None: try again. It must count as used up, and how much that is cannot be told now."""
        try:
            return ledger.read(self._place.path)
        except FileNotFoundError:
            why = "there is none"
        except DamagedError as error:
            why = str(error)
        day_bytes = self._day_bytes()
        if not day_bytes:
            if self._config().has_write_budget:
                return None
            if why != "there is none":
                _log.warning("the ledger of bytes written, %s, begins anew: %s", self._place.path, why)
            return Ledger()
        _log.warning(
            "no ledger of bytes written can be read from %s (%s): WriteBudgetPerDay= counts as used up, and"
            " comes back by the hour within a day",
            self._place.path,
            why,
        )
        found = ledger.used_up(day_bytes, _now_hour())
        self._text = found.to_text()
        return found

    def _day_bytes(self) -> int:
        """0: no budget, or none of it is left by a swap directory that cannot be looked at."""
        text = self._config().write_budget_per_day if self._config().has_write_budget else "0"
        total_bytes = 0
        if text.endswith("%"):
            try:
                found = os.statvfs(self._place.swap_dir)
            except OSError as error:
                self._tell(
                    f"WriteBudgetPerDay={text}: {self._place.swap_dir} cannot be looked at: {error.strerror}"
                )
                return 0
            total_bytes = found.f_blocks * found.f_frsize
        return in_bytes(text, total_bytes)

    def _tell(self, what: str) -> None:
        """Once, until it works again."""
        if what != self._told:
            self._told = what
            _log.warning("%s", what)


def _counter_of(engine: Engine) -> str:
    """The name of the engine's counter, which is in the page map: no other of this boot has its inode."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{os.fstat(engine.page_map_fd).st_ino}"


def _now_hour() -> int:
    return int(time.time()) // _HOUR_S
