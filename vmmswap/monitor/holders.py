# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds processes that have guest memory's files open without being served.

An fd alone changes nothing, so Enable is not refused: the journal names each process that has one at that
time. But reads through it give zeros where memory is out, and writes to a hole spoil the guest. So if a
process opens the memory later, and nobody has accepted that, all memory is swapped in.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from functools import partial

from vmmswap.engine import Holder
from vmmswap.errors import NoSuchVMError, VmmswapError
from vmmswap.monitor.guard import Failures
from vmmswap.monitor.host_looks import HostLooks
from vmmswap.monitor.looks import SeenTwice
from vmmswap.monitor.mappers import coverage
from vmmswap.monitor.spoiled import How, SpoiledError, Spoiler
from vmmswap.monitor.vm import Vm

_log = logging.getLogger("vmmswap.holders")


class Holders:
    """Looks for holders of one VM's memory. on_late(error) is called for a process that opens guest memory
    while any is out, once two looks have seen it: a child that is about to call exec is seen only once.
    """

    def __init__(self, vm: Vm, on_late: Callable[[VmmswapError], None]) -> None:
        self._vm = vm
        self._on_late = on_late
        self._accepted: set[int] = set()  # pids
        self._has_accepted = False
        self._accepted_s = -math.inf  # when the look began by which an Enable accepted
        self._late = SeenTwice[Holder]()
        self._looks = HostLooks()
        self._failures = Failures("cannot look at who has guest memory open")
        self._task = asyncio.get_running_loop().create_task(self._run(), name="holders")

    def close(self) -> None:
        self._task.cancel()

    async def accept(self) -> None:
        """At Enable: name those that have it open, each once."""
        self._accepted_s = asyncio.get_running_loop().time()
        self._accept(await self._find(coverage.other_holders))

    def _accept(self, found: dict[int, Holder]) -> None:
        for pid, holder in found.items():
            if pid not in self._accepted:
                _log.warning(
                    "process %s has guest memory open (fd %d) and is not served: it reads zeros where"
                    " memory is out",
                    *(coverage.name_of(pid), holder.fd),
                )
        self._accepted = set(found)
        self._has_accepted = True

    async def _find(self, find: Callable[[coverage.Question, int], list[Holder]]) -> dict[int, Holder]:
        question = coverage.question_of(self._vm)
        look = self._vm.pulse.together.ask(find, question, self._vm.store.manager)
        return {holder.pid: holder for holder in reversed(await look)}

    async def _without_mappers(self, found: dict[int, Holder]) -> dict[int, Holder]:
        """Leave out mappers; others handle those: in an attached VM they are attached to, in a VM that was
        handed over they are refused.
        """
        if not found:
            return found
        picture = await asyncio.to_thread(coverage.look_at, coverage.question_of(self._vm), found.keys())
        mappers = {one.pid for one in (*picture.mapped, *picture.private)}
        return {pid: holder for pid, holder in found.items() if pid not in mappers}

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            since_s = loop.time()
            try:
                if self._vm.memfds and self._vm.engine.stats().tracking:
                    await self._look()
            except NoSuchVMError:
                return
            except Exception as error:  # whatever failed: memory is out, so keep looking
                self._failures.log(error)
                self._vm.pulse.forget()
            await self._vm.pulse.rest(loop.time() - since_s)

    async def _look(self) -> None:
        asked_s = asyncio.get_running_loop().time()
        max_age_s = min(self._vm.pulse.max_age_s, asked_s - self._accepted_s)
        found = await self._find(partial(self._looks.holders, max_age_s=max_age_s))
        if self._accepted_s > asked_s:  # this look may be older, and miss who was accepted
            return
        if not self._has_accepted:  # a predecessor has accepted, and its list is lost
            self._accept(found)
            return
        if self._accepted - found.keys():
            self._accepted &= found.keys()
            self._vm.pulse.stir()  # whoever comes again is late
        late = {pid: holder for pid, holder in found.items() if pid not in self._accepted}
        if late:
            self._vm.pulse.stir()  # see soon if it is still there
        if (holder := self._late.look_at(await self._without_mappers(late))) is not None:
            self._on_late(_late_error(holder))


def _late_error(holder: Holder) -> SpoiledError:
    return SpoiledError(
        Spoiler(holder.pid, How.HAS_IT_OPEN),
        f"process {coverage.name_of(holder.pid)} has opened guest memory (fd {holder.fd}) while it was out,"
        " and reads zeros there. Call Enable again once it has closed the file, or if it does not read it",
    )
