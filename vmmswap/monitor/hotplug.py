# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that a VMM which was attached to maps and unmaps later: it tells us nothing, so its mappings do.

What a process no longer maps where it did is forgotten, and then found anew if it is only mapped elsewhere.
Before Enable all must be as recorded. In between, memory that nobody maps any more is let go, because our own
fd of it keeps it allocated.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from vmmswap.attach.attach import find_further_memory
from vmmswap.attach.memory import FilePart, Found
from vmmswap.engine import Job, Mapping, mappings_of
from vmmswap.errors import BusyError, NoSuchVMError, NotSupportedError
from vmmswap.handoff.fds import file_id
from vmmswap.handoff.messages import PAGE_SIZE, Region
from vmmswap.monitor import coverage
from vmmswap.monitor.manifest import RegionRecord
from vmmswap.monitor.vm import Process, Vm

_log = logging.getLogger("vmmswap.hotplug")

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Expected:
    """A piece of guest memory where a process had it. file_idx counts the VM's memfds."""

    process_id: int
    pid: int
    addr: int
    size_bytes: int
    file_idx: int
    offset_bytes: int
    page_idx: int  # of its region


class Hotplug:
    """Of one VM. Used from one task at a time."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._is_closed = False
        self._told: set[str] = set()  # candidates that were left, and regions that cannot be forgotten yet

    def close(self) -> None:
        self._is_closed = True

    async def follow(self) -> None:
        """Before Enable. VmmswapError if memory must not leave."""
        for record in await self._changed():
            self._forget(record)
        if not self._vm.manifest.chosen:
            await self._add_further()
        if not self._vm.manifest.regions:
            raise NotSupportedError(
                f"process {self._vm.vmm.pid} maps none of its guest's memory any more: detach, and attach"
                " again"
            )

    async def let_go(self) -> None:
        """Forget what nobody maps any more, if that can be done now."""
        if self._vm.engine.stats().job is not Job.NONE:
            return
        for record in await self._changed(unmapped=True):
            try:
                self._forget(record)
            except BusyError as error:
                self._tell(error.message)

    async def _changed(self, *, unmapped: bool = False) -> list[RegionRecord]:
        """Regions that a process does not map where it did; or those that no process maps at all."""
        vm = self._vm
        numbers = sorted(vm.memfds)
        expected = [item for process in vm.processes.values() for item in self._expected(process, numbers)]
        mappings, unreadable = await self._on_thread(mappings_of, tuple(vm.memfds[idx] for idx in numbers))
        missing = {
            item.page_idx
            for item in expected
            if item.pid not in unreadable and self._is_there(item) and not _is_mapped(item, mappings)
        }
        records = [item for item in vm.manifest.regions if item.page_idx in missing]
        if unmapped:
            return [item for item in records if not _is_mapped_at_all(item, numbers, mappings)]
        return records

    def _expected(self, process: Process, numbers: Sequence[int]) -> Iterable[_Expected]:
        if not process.pid or coverage.is_gone(process.uffd):
            return
        for piece in process.ranges:
            for record in self._vm.manifest.regions:
                if 0 <= piece.page_idx - record.page_idx < record.pages:
                    offset_bytes = record.offset_bytes + (piece.page_idx - record.page_idx) * PAGE_SIZE
                    yield _Expected(
                        process.process_id,
                        process.pid,
                        piece.addr,
                        piece.pages * PAGE_SIZE,
                        numbers.index(record.memfd),
                        offset_bytes,
                        record.page_idx,
                    )

    def _is_there(self, item: _Expected) -> bool:
        """Whether the process still was when its mappings had been read."""
        process = self._vm.processes.get(item.process_id)
        return process is not None and process.pid == item.pid and not coverage.is_gone(process.uffd)

    def _forget(self, record: RegionRecord) -> None:
        size_bytes = record.pages * PAGE_SIZE
        what = f"guest memory, {size_bytes >> 20} MiB that were at {record.addr:#x}"
        try:
            self._vm.remove_regions([Region(record.addr, size_bytes, record.offset_bytes, record.memfd)])
        except BusyError as error:
            raise BusyError(
                f"{what}, is no longer mapped there by all that had it: it cannot be followed now"
                f" ({error.message}). Call Disable, then Enable"
            ) from None
        _log.info("%s, is no longer mapped there: forgotten", what)

    async def _add_further(self) -> None:
        vm = self._vm
        known = [
            FilePart(vm.files[item.memfd], item.offset_bytes, item.offset_bytes + item.pages * PAGE_SIZE)
            for item in vm.manifest.regions
        ]
        found = await self._on_thread(find_further_memory, vm.vmm.pidfd, known)
        with found.memfds:
            for candidate in found.candidates:
                self._tell(str(candidate))
            if found.regions:
                regions = self._add(found)
                await self._extend_others(regions)

    def _add(self, found: Found) -> tuple[Region, ...]:
        """To the VM and its VMM."""
        vm = self._vm
        sent = tuple(found.memfds)
        new = [fd for fd in sent if file_id(fd) not in vm.files]
        vm.add_memfds(new)
        numbers = [vm.files.index(file_id(fd)) for fd in sent]
        regions = tuple(
            Region(item.addr, item.size_bytes, item.offset_bytes, numbers[item.memfd])
            for item in found.regions
        )
        try:
            for number, fd in zip(numbers, sent, strict=True):
                if number not in vm.memfds:
                    vm.reopen_memfd(number, fd)
            vm.add_regions(regions, mapped_by=vm.vmm.process_id)
        except BaseException:
            vm.forget_memfds(len(new))
            raise
        return regions

    async def _extend_others(self, regions: Sequence[Region]) -> None:
        """Processes that are known may map it too. The others are found by who looks for strangers."""
        vm = self._vm
        numbers = sorted(vm.memfds)
        mappings, _ = await self._on_thread(mappings_of, tuple(vm.memfds[idx] for idx in numbers))
        by_pid = {item.pid: item.process_id for item in reversed(vm.processes.values()) if item.pid}
        for mapping in mappings:
            process_id = by_pid.get(mapping.pid)
            if process_id is not None and process_id != vm.vmm.process_id:
                vm.extend_process(process_id, list(_parts(mapping, numbers, regions)))

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            _log.info("%s", what)

    async def _on_thread(self, work: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
        result = await asyncio.to_thread(work, *arguments, **named)
        if self._is_closed:
            raise NoSuchVMError("the VM has ended")
        return result


def _is_mapped(item: _Expected, mappings: Iterable[Mapping]) -> bool:
    """All of it, at its place."""
    addr, end = item.addr, item.addr + item.size_bytes
    for mapping in mappings:  # by address in each process
        if (
            (mapping.pid, mapping.file_idx) == (item.pid, item.file_idx)
            and mapping.addr - mapping.offset_bytes == item.addr - item.offset_bytes
            and mapping.addr <= addr < mapping.addr + mapping.size_bytes
        ):
            addr = mapping.addr + mapping.size_bytes
    return addr >= end


def _is_mapped_at_all(record: RegionRecord, numbers: Sequence[int], mappings: Iterable[Mapping]) -> bool:
    return any(
        numbers[mapping.file_idx] == record.memfd
        and mapping.offset_bytes < record.offset_bytes + record.pages * PAGE_SIZE
        and record.offset_bytes < mapping.offset_bytes + mapping.size_bytes
        for mapping in mappings
    )


def _parts(mapping: Mapping, numbers: Sequence[int], regions: Iterable[Region]) -> Iterable[Region]:
    for region in regions:
        start = max(mapping.offset_bytes, region.offset_bytes)
        end = min(mapping.offset_bytes + mapping.size_bytes, region.end_offset)
        if numbers[mapping.file_idx] == region.memfd and start < end:
            yield Region(mapping.addr + start - mapping.offset_bytes, end - start, start, region.memfd)
