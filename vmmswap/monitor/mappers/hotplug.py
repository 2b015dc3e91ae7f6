# SPDX-License-Identifier: GPL-2.0-or-later
"""What the processes of an attached VM map and unmap later: they tell us nothing, so their mappings do.

A process keeps its userfaultfd, and what is known of its memory follows what it maps. Memory that nobody
maps any more is released, because our own fd of it keeps it allocated. New memory of the VMM is taken by the
rules of attach.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container, Iterable, Sequence
from typing import ParamSpec, TypeVar

from vmmswap.attach.attach import find_further_memory
from vmmswap.attach.memory import Found, KnownParts
from vmmswap.engine import Job, MapperWatch, Range
from vmmswap.errors import BusyError, InvalidRegionError, NoSuchVMError, NotSupportedError
from vmmswap.handoff.region import PAGE_SIZE, Region
from vmmswap.linux.files import file_id
from vmmswap.monitor.keep.manifest import RegionRecord
from vmmswap.monitor.mappers import coverage
from vmmswap.monitor.mappers.coverage import MappedRange
from vmmswap.monitor.mappers.liveness import Liveness
from vmmswap.monitor.mappers.placement import joined, kept, moved, overlap, uncovered
from vmmswap.monitor.process import Process
from vmmswap.monitor.vm import Vm

_log = logging.getLogger("vmmswap.hotplug")

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Hotplug:
    """Follows one VM's mappings. Used from one task at a time. on_late is called for a process that has
    mapped memory while it was out, before the process is served there.
    """

    def __init__(self, vm: Vm, liveness: Liveness, on_late: Callable[[int], None]) -> None:
        self._vm = vm
        self._liveness = liveness
        self._on_late = on_late
        self._mappers = MapperWatch()
        self._is_closed = False
        self._told: set[str] = set()  # about skipped candidates, and regions that cannot be forgotten yet

    def close(self) -> None:
        self._is_closed = True

    async def follow(self) -> None:
        """Called before Enable. VmmswapError if memory must not be swapped out."""
        picture = await self.look()
        await self.follow_known(picture)
        for record in self._unmapped(picture):
            await self._forget(record)
        await self.register_anew()
        if not self._vm.manifest.chosen:
            await self._add_further()
        if not self._vm.manifest.regions:
            raise NotSupportedError(
                f"process {self._vm.vmm.pid} maps none of its guest's memory any more: detach, and attach"
                " again"
            )

    async def let_go(self, picture: coverage.Picture) -> None:
        """Forget memory that nobody maps any more, if that can be done now."""
        if self._vm.engine.stats().job is not Job.NONE:
            return
        for record in self._unmapped(picture):
            try:
                await self._forget(record)
            except BusyError as error:
                self.tell(error.message)

    async def look(self) -> coverage.Picture:
        """Return who maps the memory now. NoSuchVMError once the VM has ended."""
        return await self._on_thread(coverage.look, coverage.question_of(self._vm))

    async def look_again(self) -> coverage.Picture:
        """Do the same for a look every second; it notices hardly visible changes later."""
        return await self._on_thread(coverage.look, coverage.question_of(self._vm), self._mappers)

    async def follow_known(self, picture: coverage.Picture) -> None:
        """Serve known processes where they map the memory now: all that can be. NotSupportedError for the
        first one that cannot.

        Not forked children: their pids are guesses, and what one unmaps must not be taken from another.
        """
        gone = await self._liveness.gone(self._vm.processes.values())
        if self._is_closed:
            raise NoSuchVMError("the VM has ended")
        starts = self._starts()
        mapped = _by_pid(picture.mapped, starts)
        for pid, processes in self._known(picture, gone).items():
            if await self._vm.any_out(_places(processes, mapped.get(pid, []))[1]):
                self._on_late(pid)
        refusals = []
        for pid, processes in self._known(picture, gone).items():  # as they are now
            try:
                self._follow_process(processes, mapped.get(pid, []), starts)
            except NotSupportedError as error:
                refusals.append(error)
        if refusals:
            raise refusals[0]

    def _known(self, picture: coverage.Picture, gone: Container[int]) -> dict[int, list[Process]]:
        by_pid: dict[int, list[Process]] = {}
        for process in self._vm.processes.values():
            is_known = process.pid and not process.is_forked and process.pid not in picture.unreadable
            if is_known and process.process_id not in gone:
                by_pid.setdefault(process.pid, []).append(process)
        return by_pid

    def _starts(self) -> set[int]:
        return {record.page_idx for record in self._vm.manifest.regions}

    def _follow_process(
        self, processes: Sequence[Process], mapped: Sequence[Range], starts: Container[int]
    ) -> None:
        """Each userfaultfd keeps its ranges that are still there; the first one gets the new ranges."""
        wanted, more = _places(processes, mapped)
        wanted[min(wanted)] += more
        for process in sorted(processes, key=lambda process: -process.key):
            ranges = joined(wanted[process.key], starts)
            if ranges != sorted(process.ranges, key=lambda item: item.addr):
                self._set_ranges(process, ranges)

    def _set_ranges(self, process: Process, ranges: Sequence[Range]) -> None:
        regions = self._vm.manifest.regions
        if process is self._vm.vmm:
            regions = tuple(moved(item, ranges) for item in regions)
        try:
            self._vm.set_ranges(process, ranges, regions=regions)
        except InvalidRegionError as error:
            raise NotSupportedError(f"process {coverage.name_of(process.pid)}: {error.message}") from None

    async def register_anew(self) -> None:
        """Register memory that was unmapped and mapped again in its place: it looks as before, and is not
        registered.
        """
        if not self._vm.engine.stats().tracking:
            return
        question = coverage.question_of(self._vm)
        found = await self._on_thread(coverage.find_unregistered, question)
        gone = await self._liveness.gone(self._vm.processes.values())
        if self._is_closed:
            raise NoSuchVMError("the VM has ended")
        for process_id in found:
            process = self._vm.processes.get(process_id)
            if process is None or process_id in gone:
                continue
            if await self._vm.any_out(process.ranges):
                self._on_late(process.pid)
            self._vm.engine.register_again(process_id)  # empty if it has ended meanwhile

    def _unmapped(self, picture: coverage.Picture) -> list[RegionRecord]:
        """Return regions that no process maps. A process whose maps cannot be read, or that was just forked,
        may map any.
        """
        if any(
            (process.ranges and not process.pid) or process.pid in picture.unreadable
            for process in self._vm.processes.values()
        ):
            return []
        return [
            record
            for record in self._vm.manifest.regions
            if not any(overlap(Range(0, record.page_idx, record.pages), one.range) for one in picture.mapped)
        ]

    async def _forget(self, record: RegionRecord) -> None:
        size_bytes = record.pages * PAGE_SIZE
        what = f"guest memory ({size_bytes >> 20} MiB, which were at {record.addr:#x})"
        try:
            await self._vm.remove_regions(
                [Region(record.addr, size_bytes, record.offset_bytes, record.memfd)]
            )
        except BusyError as error:
            raise BusyError(
                f"nobody maps {what} any more, and it cannot be released now ({error.message}): call"
                " Disable, then Enable"
            ) from None
        _log.info("nobody maps %s any more: it is released", what)

    async def _add_further(self) -> None:
        vm = self._vm
        known: KnownParts = {}
        for item in vm.manifest.regions:
            end_offset = item.offset_bytes + item.pages * PAGE_SIZE
            known.setdefault(vm.files[item.memfd], []).append((item.offset_bytes, end_offset))
        found = await self._on_thread(find_further_memory, vm.vmm.pidfd, known)
        with found.memfds:
            for candidate in found.candidates:
                self.tell(str(candidate))
            if not found.regions:
                return
            self._add(found)
        await self.follow_known(await self.look())  # others may map it too

    def _add(self, found: Found) -> None:
        vm = self._vm
        new: dict[int, int] = {}  # fds by number
        numbers = []
        for fd in found.memfds:
            file = file_id(fd)
            if file in vm.files:
                numbers.append(vm.files.index(file))
            else:
                numbers.append(len(vm.files) + len(new))
                new[numbers[-1]] = fd
        reopened = {
            number: fd
            for number, fd in zip(numbers, found.memfds, strict=True)
            if number not in vm.memfds and number not in new
        }
        regions = [
            Region(item.addr, item.size_bytes, item.offset_bytes, numbers[item.memfd])
            for item in found.regions
        ]
        vm.add_memory(list(new.values()), regions, reopened)

    def tell(self, what: str) -> None:
        """Log what must not be logged at each look."""
        if what not in self._told:
            self._told.add(what)
            _log.info("%s", what)

    async def _on_thread(self, work: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
        if self._is_closed:
            raise NoSuchVMError("the VM has ended")
        result = await asyncio.to_thread(work, *arguments, **named)
        if self._is_closed:
            if isinstance(result, Found):
                result.memfds.close()
            raise NoSuchVMError("the VM has ended")
        return result


def _places(
    processes: Sequence[Process], mapped: Sequence[Range]
) -> tuple[dict[int, list[Range]], list[Range]]:
    """For processes that share a pid: what each of them, by its key, still has of the mapped ranges; and what
    none has.
    """
    had = {process.key: kept(process.ranges, mapped) for process in processes}
    return had, uncovered(mapped, [item for ranges in had.values() for item in ranges])


def _by_pid(mapped: Iterable[MappedRange], starts: Container[int]) -> dict[int, list[Range]]:
    found: dict[int, list[Range]] = {}
    for one in mapped:
        found.setdefault(one.pid, []).append(one.range)
    return {pid: joined(ranges, starts) for pid, ranges in found.items()}
