# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks for processes that begin to map guest memory while it is out, and that nobody told us of.

Of a VM that was handed over nothing can be done for such a process, but it can be reported. A private mapping
is worse than a shared one: no userfaultfd can ever serve it, so all memory is brought back, and Enable is
refused while it is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from vmmswap import message_ids
from vmmswap.engine import MapperWatch
from vmmswap.errors import NoSuchVMError, VmmswapError
from vmmswap.log import fields
from vmmswap.monitor import coverage
from vmmswap.monitor.coverage import Piece
from vmmswap.monitor.processes import Processes
from vmmswap.monitor.vm import Vm

_log = logging.getLogger("vmmswap.lookout")

_EVERY_S = 1.0
_REST = 50  # times as long as a look took: two parts in a hundred of a CPU at most
# A VMM may let a process map the memory before it sends add-process, so long as that touches nothing.
_PATIENCE_S = 10.0


def pause_s(took_s: float) -> float:
    """Until the next look, after one that took so long."""
    return max(_EVERY_S, _REST * took_s)


class PrivateMappers:
    """on_private(error) is called for a process that maps guest memory privately while any is out: once it
    was seen twice, as a child that is about to call exec is not.
    """

    def __init__(self, on_private: Callable[[VmmswapError], None]) -> None:
        self._on_private = on_private
        self._before: set[int] = set()

    def look_at(self, pieces: Iterable[Piece]) -> None:
        seen = {piece.pid: piece for piece in pieces}
        both = sorted(self._before & seen.keys())
        self._before = set(seen)
        if both:
            self._on_private(coverage.private_error(seen[both[0]]))


class Watcher:
    """Watches who maps a VM's memory, from being made until close(). This one need not: the memory is
    private, and nobody else can map it.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def close(self) -> None:
        """Watch no longer."""

    async def stop(self) -> None:
        """Close, and wait until nothing is done to any process any more."""
        self.close()

    async def check_before_enable(self) -> None:
        """NotSupportedError if memory must not leave."""
        await self._processes.check_covered()

    def check_before_exit(self) -> None:
        """BusyError if the VM cannot be released now."""


class Lookout(Watcher):
    """Of a VM that was handed over."""

    def __init__(self, vm: Vm, processes: Processes, on_private: Callable[[VmmswapError], None]) -> None:
        super().__init__(processes)
        self._vm = vm
        self._private = PrivateMappers(on_private)
        self._mappers = MapperWatch()
        self._since_s: dict[int, float] = {}  # when a pid was first seen without being served
        self._told: set[int] = set()
        self._last_error = ""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="lookout")

    def close(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            since_s = loop.time()
            try:
                if self._vm.engine.stats().tracking:
                    await self._look()
            except NoSuchVMError:
                return
            except (VmmswapError, OSError) as error:
                if str(error) != self._last_error:
                    self._last_error = str(error)
                    _log.warning("cannot look at who maps guest memory: %s", error)
            await asyncio.sleep(pause_s(loop.time() - since_s))

    async def _look(self) -> None:
        question = coverage.question_of(self._vm)
        picture = await asyncio.to_thread(coverage.look, question, self._mappers)
        self._private.look_at(picture.private)
        now_s = asyncio.get_running_loop().time()
        strangers = {piece.pid: piece for piece in picture.strangers}
        self._since_s = {pid: self._since_s.get(pid, now_s) for pid in strangers}
        for pid, since_s in self._since_s.items():
            if now_s - since_s >= _PATIENCE_S and pid not in self._told:
                self._told.add(pid)
                _log.error(
                    "%s, while memory is out",
                    coverage.stranger_error(strangers[pid]).message,
                    extra=fields("", message_ids.LATE_MAPPER, vmmswap_pid=pid),
                )
        self._told &= strangers.keys()
