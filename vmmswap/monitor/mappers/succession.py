# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of a VM's memory when its VMM has ended, or has called exec.

The VMM need not be the last that has it. Another VMM may have taken it over (QEMU's migration with
x-ignore-shared, a restart by exec), a back-end may still map it, a snapshot tool may have it open, or it may
be a file with a name. What is out is given up only when nobody and nothing has that memory. Until then

- processes that are served are served on; of an attached VM one of them becomes its VMM;
- whoever has it without being served reads zeros where memory is out, so all is brought back first.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vmmswap.engine import Job
from vmmswap.errors import NoSuchVMError
from vmmswap.failpoint import reach
from vmmswap.linux.userfaultfd import is_gone
from vmmswap.monitor.guard import Failures
from vmmswap.monitor.mappers import coverage
from vmmswap.monitor.mappers.placement import moved
from vmmswap.monitor.process import Process
from vmmswap.monitor.vm import Vm

_log = logging.getLogger("vmmswap.succession")

_LOOK_AGAIN_S = 0.1
_LOOK_LATER_S = 5.0  # once another process has become the VMM
_RETRY_S = 1.0
_LOOKS = 10  # for processes that only have the memory open
# A back-end sees its VMM's end on its socket, and ends soon: swapping all in for it would be in vain.
_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Heirs:
    """Who has the memory. served: processes of the VM, by the engine's number. other: if there are none,
    anybody else, for people; empty if there is nobody. may_pass: it only has it open, as a service manager's
    child does that is about to call exec.
    """

    served: tuple[int, ...]
    other: str = ""
    may_pass: bool = False


@dataclass(frozen=True, slots=True)
class _Question:
    memory: coverage.Question
    uffds: tuple[tuple[int, int], ...]  # of the known processes: the engine's number, fd
    manager: int  # the pid of who keeps fds for us; 0: nobody


def _question_of(vm: Vm) -> _Question:
    return _Question(
        coverage.question_of(vm),
        tuple((process.process_id, process.uffd) for process in vm.processes.values()),
        vm.store.manager,
    )


def _look(question: _Question) -> Heirs:
    """Blocks: call it on a thread."""
    living = {process_id for process_id, uffd in question.uffds if not is_gone(uffd)}
    picture = coverage.look(question.memory)
    mapped = {one.pid for one in picture.mapped}
    served = tuple(
        item.process_id
        for item in picture.known
        if item.process_id in living
        and item.ranges
        and (not item.pid or item.pid in mapped or item.pid in picture.unreadable)
    )
    if served:
        return Heirs(served)
    for one in (*picture.mapped, *picture.private):
        return Heirs((), f"process {coverage.name_of(one.pid)} maps its memory")
    memfds = question.memory.memfds
    if named := next(filter(None, map(_name_of, memfds)), ""):
        return Heirs((), named)
    unserved = replace(question.memory, known=())
    for holder in coverage.other_holders(unserved, question.manager):
        who = f"process {coverage.name_of(holder.pid)} has its memory open (fd {holder.fd})"
        return Heirs((), who, may_pass=True)
    return Heirs(())


def _name_of(memfd: int) -> str:
    if not os.fstat(memfd).st_nlink:
        return ""
    path = Path(f"/proc/self/fd/{memfd}").readlink()
    return f"its memory is a file that has a name, {str(path)!a}"


class Succession:
    """Handles the end of one VM's VMM. Call begin() when the VMM has gone. on_nobody is called when nobody
    has the memory any more; nothing is done here after that. bring_back(reason) is called once, if all must
    be swapped in first.
    """

    def __init__(self, vm: Vm, on_nobody: Callable[[], None], bring_back: Callable[[str], None]) -> None:
        self._vm = vm
        self._on_nobody = on_nobody
        self._bring_back = bring_back
        self._look_now = asyncio.Event()
        self._told: set[str] = set()
        self._looks_left = _LOOKS
        self._gone_key = -1  # of the VMM reported last
        self._is_brought_back = False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """The VMM has gone. May be called again."""
        if self._task is None and self._has_nothing_to_lose():
            self._on_nobody()
            return
        if self._gone_key == self._vm.manifest.vmm_key:
            return
        self._gone_key = self._vm.manifest.vmm_key
        self._look_now.set()
        if self._task is None:
            self._tell(
                f"process {self._vm.vmm.pid}, the VMM, has ended or called exec: looking for others that"
                " have its memory"
            )
            self._task = asyncio.get_running_loop().create_task(self._run(), name="succession")

    def close(self) -> None:
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    def _has_nothing_to_lose(self) -> bool:
        """All memory is in. If the VM was attached, there may be another VMM to be served."""
        vm = self._vm
        if not vm.backing.others_may_map:
            return True
        is_idle = vm.engine.stats().job is Job.NONE and not vm.is_out()
        return is_idle and (not vm.manifest.attached or len(vm.processes) == 1)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + _GRACE_S
        failures = Failures("cannot find out who has the VM's memory; trying again")
        while True:
            self._look_now.clear()
            try:
                if await self._look(end_s):
                    return
                settled = self._is_brought_back or self._is_promoted()
                pause_s = _LOOK_LATER_S if settled else _LOOK_AGAIN_S
            except NoSuchVMError:
                return
            except Exception as error:  # whatever failed: nobody else would ever release this memory
                failures.log(error)
                pause_s = _RETRY_S
            try:
                async with asyncio.timeout(pause_s):
                    await self._look_now.wait()
            except TimeoutError:
                continue
            end_s = loop.time() + _GRACE_S  # another one has gone

    async def _look(self, end_s: float) -> bool:
        """True if nobody has the memory."""
        heirs = await asyncio.to_thread(_look, _question_of(self._vm))
        if not (heirs.served or heirs.other):
            self._on_nobody()
            return True
        self._settle(heirs, is_late=asyncio.get_running_loop().time() > end_s)
        return False

    def _settle(self, heirs: Heirs, *, is_late: bool) -> None:
        """Somebody has the memory."""
        served = [process for number in heirs.served if (process := self._vm.processes.get(number))]
        if self._is_brought_back or (served and self._vm.manifest.attached and self._promote(served)):
            return
        if heirs.other:
            self._looks_left -= 1
            if not heirs.may_pass or not self._looks_left:
                self._order_back(heirs.other)
        elif served and is_late:
            self._order_back(f"process {coverage.name_of(served[0].pid)} still has its memory")

    def _order_back(self, who: str) -> None:
        self._is_brought_back = True
        self._bring_back(who)

    def _is_promoted(self) -> bool:
        return not self._vm.vmm.has_gone

    def _promote(self, served: Sequence[Process]) -> bool:
        """Make one of these the VMM, unless it already is. False if none can be."""
        if self._vm.vmm in served:
            return True
        candidates = [process for process in served if process.pidfd >= 0]
        if not candidates:
            return False
        heir = min(candidates, key=lambda process: (process.is_forked, process.key))
        regions = tuple(moved(item, heir.ranges) for item in self._vm.manifest.regions)
        before = self._vm.vmm
        self._vm.change(vmm_key=heir.key, regions=regions)
        reach("vmm.promoted")
        self._vm.remove_process(before.process_id)
        _log.warning(
            "process %s is the VM's VMM from now on: process %d has ended, or has called exec",
            *(coverage.name_of(heir.pid), before.pid),
        )
        return True

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            _log.info("%s", what)
