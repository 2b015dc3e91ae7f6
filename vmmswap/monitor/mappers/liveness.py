# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds out if the address spaces of a VM's processes are still there, on a thread.

The question takes the mmap lock of the process (is_gone()), which the process may hold for as long as it
likes. A process that does not answer in time holds its lock, so it is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from vmmswap.linux.userfaultfd import is_gone
from vmmswap.monitor.process import Process
from vmmswap.monitor.together import Together, Waits

LIMIT_S = 1.0


class Liveness:
    """Asks for one VM. However many ask, at most one thread waits for its processes."""

    def __init__(self, together: Together) -> None:
        self._together = together
        self._asking: asyncio.Future[None] | None = None

    async def gone(self, processes: Iterable[Process]) -> frozenset[int]:
        """Return the engine's numbers of processes that have ended or called exec, as far as known in time.
        Others may be forgotten meanwhile.
        """
        asked = [(process.process_id, process.uffd) for process in processes]
        if not asked or not await self._is_free():
            return frozenset()
        found: set[int] = set()
        self._asking = self._together.ask(_ask, asked, found, waits=Waits.FOR_THE_VM)
        await asyncio.wait({self._asking}, timeout=LIMIT_S)
        return frozenset(found)

    async def _is_free(self) -> bool:
        end_s = asyncio.get_running_loop().time() + LIMIT_S
        while self._asking is not None and not self._asking.done():
            left_s = end_s - asyncio.get_running_loop().time()
            if left_s <= 0:
                return False
            await asyncio.wait({self._asking}, timeout=left_s)
        return True


def _ask(asked: Iterable[tuple[int, int]], found: set[int]) -> None:
    for process_id, uffd in asked:
        if is_gone(uffd):
            found.add(process_id)
