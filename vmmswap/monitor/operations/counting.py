# SPDX-License-Identifier: GPL-2.0-or-later
"""Has the pages on RAM counted, where that takes long, before somebody is told how many there are."""

from __future__ import annotations

import asyncio

from vmmswap.errors import NoSuchVMError
from vmmswap.monitor.guard import guarded
from vmmswap.monitor.vm import Vm

_LIMIT_S = 2.0  # then what was counted last must do


class Counting:
    """Of one VM at a time. One count runs at a time, and each who asks gets one that began after that."""

    def __init__(self) -> None:
        self._asked = 0
        self._counted = 0  # for whom of those who asked
        self._task: asyncio.Task[None] | None = None

    async def refresh(self, vm: Vm) -> None:
        """Return once that is done, or has taken too long."""
        try:
            if not _is_needed(vm):
                return
        except NoSuchVMError:
            return
        self._asked += 1
        mine, end_s = self._asked, asyncio.get_running_loop().time() + _LIMIT_S
        while self._counted < mine:
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._count(vm), name="count")
            done, _ = await asyncio.wait({self._task}, timeout=end_s - asyncio.get_running_loop().time())
            if not done:
                return

    async def _count(self, vm: Vm) -> None:
        for_whom = self._asked
        with guarded("the pages on RAM cannot be counted"):
            await asyncio.to_thread(vm.engine.count_resident if vm.resident is None else vm.resident.look)
        self._counted = for_whom


def _is_needed(vm: Vm) -> bool:
    """What a process has besides guest memory is found once; pages of files are counted each time."""
    return vm.engine.needs_count if vm.resident is None else vm.resident.needs_look
