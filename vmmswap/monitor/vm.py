# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VM has registered: its engine, memory and processes, each change told to the fd store.

Where the fds came from, a hand-off or an attach, does not matter here. Everything given is dup'ed or sent on;
what the caller gave stays the caller's to close.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vmmswap.engine import Engine, Range
from vmmswap.errors import BusyError, InvalidRegionError, NoSuchVMError
from vmmswap.failpoint import reach
from vmmswap.handoff.region import PAGE_SIZE, Region
from vmmswap.later import asyncio
from vmmswap.linux import closing
from vmmswap.linux.files import FileId, file_id
from vmmswap.monitor import snapshot
from vmmswap.monitor.backing import Backing, of_record
from vmmswap.monitor.guard import guarded
from vmmswap.monitor.keep import fdstore
from vmmswap.monitor.keep.fdstore import FdStore
from vmmswap.monitor.keep.manifest import Manifest, ManifestFile, ProcessRecord, RegionRecord
from vmmswap.monitor.own_fds import dup, open_anew
from vmmswap.monitor.process import Process
from vmmswap.monitor.pulse import Pulse

if TYPE_CHECKING:
    from vmmswap.engine import EngineStats
    from vmmswap.monitor.new_vm import NewProcess

_log = logging.getLogger("vmmswap.vm")

_MAX_RANGES = 1024  # of one process


@dataclass(slots=True)
class Vm:
    engine: Engine
    manifest: Manifest
    file: ManifestFile
    store: FdStore
    memfds: dict[int, int] = field(default_factory=dict)  # number: fd, ours
    files: list[FileId] = field(default_factory=list)  # by number
    processes: dict[int, Process] = field(default_factory=dict)  # by the engine's number
    resident: snapshot.Resident | None = None  # where the engine cannot count that
    mailbox: int | None = None  # ours, of the thread that moves private memory
    pulse: Pulse = field(init=False)

    def __post_init__(self) -> None:
        self.pulse = Pulse(self.engine)

    @property
    def vmm(self) -> Process:
        """The process that registered, or the one that has taken the VM over from it."""
        return next(item for item in self.processes.values() if item.key == self.manifest.vmm_key)

    @property
    def backing(self) -> Backing:
        return of_record(self.manifest)

    def stats(self) -> EngineStats:
        """The engine's counters; what it does not see of resident memory is counted in the process."""
        stats = self.engine.stats()
        return stats if self.resident is None else replace(stats, resident_pages=self.resident.pages())

    def count_in_process(self) -> None:
        """From now on, if the engine cannot count what is resident."""
        self.resident = self.backing.resident(self.vmm.pid, self.vmm.ranges)

    def is_out(self) -> bool:
        """True if any page is swapped out."""
        stats = self.engine.stats()
        return stats.swap_pages + stats.poisoned_pages > 0

    async def any_out(self, ranges: Iterable[Range]) -> bool:
        """True if any page of these is swapped out. NoSuchVMError if the VM ends meanwhile."""
        looked_at = tuple(ranges)
        return bool(looked_at) and self.is_out() and await asyncio.to_thread(self._any_out, looked_at)

    def _any_out(self, ranges: Iterable[Range]) -> bool:
        return any(self.engine.is_out(item.page_idx, item.pages) for item in ranges)

    def check_may_go_out(self) -> None:
        """NotSupportedError if nothing of this memory can be swapped out."""
        self.backing.check_may_go_out()

    def change(self, **values: object) -> None:
        """Change the record that a successor reads."""
        manifest = replace(self.manifest, **values)  # type: ignore[arg-type]  # the fields' own types
        self.file.write(manifest)
        self.manifest = manifest
        self.pulse.stir()

    def record(self, **values: object) -> None:
        """All that goes with memory and processes, in one record with these values: a successor must never
        find the one without the other.
        """
        self.change(
            memfds=tuple(self.memfds),
            files=len(self.files),
            processes=tuple(item.record for item in self.processes.values()),
            **values,
        )

    def handoff_regions(self) -> tuple[Region, ...]:
        """The VMM's regions as its hand-off session knows them."""
        return tuple(
            Region(item.addr, item.pages * PAGE_SIZE, item.offset_bytes, item.memfd)
            for item in self.manifest.regions
        )

    def add_process(self, new: NewProcess) -> Process:
        """Serve one more process, but for its dummy page. Nothing has changed if this raises.

        The record and the fd store have it before the kernel makes it wait for us.
        """
        ranges = tuple(self.range_of(region) for region in new.regions)
        key = self._new_key()
        with contextlib.ExitStack() as undo:
            pidfd, uffd = dup(new.pidfd, undo), dup(new.uffd, undo)
            process = Process(key, -1, new.pid, pidfd, uffd, True, ranges, new.is_proven, new.dummy_page or 0)
            undo.callback(self.record)
            self.change(next_key=key + 1, processes=(*self.manifest.processes, process.record))
            undo.callback(self._take_out, process)
            self._store(process)
            reach("process.stored")
            process.process_id = self.engine.add_process(uffd, ranges)
            self.processes[process.process_id] = process
            undo.pop_all()
        reach("process.added")
        return process

    def register_dummy(self, process: Process) -> None:
        """From here on fork() in the process waits for us. InvalidRegionError."""
        if process.dummy_page:
            self.engine.register_dummy(process.process_id, process.dummy_page)

    def set_ranges(self, process: Process, ranges: Sequence[Range], **values: object) -> None:
        """Where a process maps the memory from now on; values: what else of the record changes with it.
        InvalidRegionError, with nothing changed, if it cannot be served there.
        """
        if len(ranges) > _MAX_RANGES:
            raise InvalidRegionError(
                f"guest memory is mapped in {len(ranges)} pieces: at most {_MAX_RANGES} can be followed"
            )
        before = process.ranges
        undone = {name: getattr(self.manifest, name) for name in values}
        process.ranges = tuple(ranges)
        try:
            self.record(**values)
            reach("memory.recorded")
            self.engine.set_ranges(process.process_id, process.ranges)
        except BaseException:
            process.ranges = before
            self.record(**undone)
            raise

    def extend_process(self, process: Process, regions: Sequence[Region]) -> None:
        """A process that is served maps further guest memory."""
        self._add_ranges(process, map(self.range_of, regions))

    def _add_ranges(self, process: Process, ranges: Iterable[Range], **values: object) -> None:
        """The engine knows what it had: events of a VMM that moves its memory go there."""
        self.set_ranges(process, (*self.engine.ranges_of(process.process_id), *ranges), **values)

    def note_ranges(self, process_id: int) -> None:
        """A process has moved or unmapped guest memory, and the engine follows; a successor must too."""
        process = self.processes.get(process_id)
        if process is None:
            return
        ranges = self.engine.ranges_of(process_id)
        if len(ranges) > _MAX_RANGES:
            _log.error(
                "process %s has guest memory in %d pieces: more than %d cannot be recorded, and would be lost"
                " if the monitor died",
                *(process.pid, len(ranges), _MAX_RANGES),
            )
            return
        process.ranges = ranges
        self.record()

    def add_child(self, process_id: int, parent_id: int, uffd: int) -> None:
        """Take note of a forked child, which the engine serves already.

        If this raises, the child is known all the same, but a successor would not have its userfaultfd: call
        it again.
        """
        if known := self.processes.get(process_id):
            self._enter(known)
            return
        parent = self.processes.get(parent_id)  # None: it ended before its child was reported
        is_proven = parent.is_proven if parent else all(item.is_proven for item in self.processes.values())
        dummy_page = parent.dummy_page if parent else 0
        ranges = self.engine.ranges_of(process_id)  # its parent's when it was forked
        child = Process(
            self._new_key(),
            process_id,
            0,
            -1,
            uffd,
            False,
            ranges,
            is_proven,
            dummy_page,
            is_forked=True,
        )
        self._enter(child)

    def add_orphan(self, uffd: int, parent: ProcessRecord) -> None:
        """Serve a forked child whose uffd, ours from here on, a keeper saved; before the engine recovers."""
        ranges = tuple(Range(*item) for item in parent.ranges)
        process_id = self.engine.add_process(uffd, ranges)
        key, dummy_page = self._new_key(), parent.dummy_page
        self._enter(
            Process(key, process_id, 0, -1, uffd, True, ranges, parent.is_proven, dummy_page, is_forked=True)
        )

    def _new_key(self) -> int:
        """Not that of a process whose entry has failed, either."""
        return max([self.manifest.next_key, *(item.key + 1 for item in self.processes.values())])

    def _enter(self, process: Process) -> None:
        """The record first: a uffd in the store that no record speaks of could not be used."""
        self.processes[process.process_id] = process
        self.record(next_key=max(self.manifest.next_key, process.key + 1))
        self._store(process)

    def _store(self, process: Process) -> None:
        self.store.add(fdstore.uffd_name(process.key), process.uffd)
        if process.pidfd >= 0:
            self.store.add(fdstore.pidfd_name(process.key), process.pidfd)

    def is_kept(self, process: Process) -> bool:
        """True if a successor would have the process's userfaultfd."""
        return self.store.keeps(fdstore.uffd_name(process.key))

    def _take_out(self, process: Process) -> None:
        self.store.remove(fdstore.uffd_name(process.key))
        self.store.remove(fdstore.pidfd_name(process.key))

    def found_pid(self, process: Process, pid: int, pidfd: int) -> None:
        """A forked child's pid is known now; the pidfd is the VM's from here on. If that cannot be recorded,
        it is closed, and nothing has changed.
        """
        process.pid, process.pidfd = pid, pidfd
        try:
            self.record()
        except BaseException:
            process.pid, process.pidfd = 0, -1
            os.close(pidfd)
            raise
        self.store.add(fdstore.pidfd_name(process.key), pidfd)

    def lost_pid(self, process: Process) -> None:
        """The pid was not this process's. Its pidfd, which nobody waits for any more, is closed."""
        self.store.remove(fdstore.pidfd_name(process.key))
        os.close(process.pidfd)
        process.pid, process.pidfd = 0, -1
        self.record()

    def remove_process(self, process_id: int) -> Process | None:
        """Forget a process that has ended. None if it was forgotten before. If that cannot be recorded,
        nothing has changed.

        Whoever waits for its pidfd in an event loop must have stopped that.
        """
        process = self.processes.pop(process_id, None)
        if process is None:
            return None
        try:
            self.record()
        except BaseException:
            self.processes[process_id] = process
            raise
        self.engine.remove_process(process_id)
        process.close()
        self._take_out(process)
        return process

    def add_memory(
        self, new: Sequence[int], regions: Sequence[Region], reopened: Mapping[int, int] | None = None
    ) -> None:
        """Memory that the VMM maps besides. new: memfds that get the next numbers; reopened: by number, those
        of files that were given up when their last region went. Nothing has changed if this raises.
        """
        self.add_memfds(new)
        try:
            for number, fd in (reopened or {}).items():
                self._reopen_memfd(number, fd)
            self.add_regions(regions, mapped_by=self.vmm)
        except BaseException:
            self._forget_memfds(len(new))
            self.drop_unused_memfds()
            raise

    def add_memfds(self, fds: Sequence[int]) -> None:
        """Memfds that regions will lie in; they get the next numbers."""
        with contextlib.ExitStack() as undo:
            for number, fd in enumerate(fds, len(self.files)):
                own = open_anew(fd, undo)
                undo.callback(self.store.remove, fdstore.memfd_name(number))
                self.store.add(fdstore.memfd_name(number), own)
                self.memfds[number] = own
                undo.callback(self.memfds.pop, number)
                self.files.append(file_id(own))
                undo.callback(self.files.pop)
            self.record()
            undo.pop_all()

    def _forget_memfds(self, count: int) -> None:
        """Undo the last add_memfds()."""
        for _ in range(count):
            self.files.pop()
            number = len(self.files)
            self.store.remove(fdstore.memfd_name(number))
            closing.close(self.memfds.pop(number))
        self.record()

    def _reopen_memfd(self, number: int, fd: int) -> None:
        with contextlib.ExitStack() as undo:
            own = open_anew(fd, undo)
            self.store.add(fdstore.memfd_name(number), own)
            self.memfds[number] = own
            self.record()
            undo.pop_all()

    def drop_unused_memfds(self) -> None:
        """A memfd that we hold keeps its memory allocated, even if the VMM has closed it."""
        used = {region.memfd for region in self.manifest.regions}
        for number in [number for number in self.memfds if number not in used]:
            self.store.remove(fdstore.memfd_name(number))
            closing.close(self.memfds.pop(number))
        self.record()

    def add_regions(self, regions: Sequence[Region], *, mapped_by: Process | None) -> None:
        """Add guest memory; mapped_by: the process that maps it already."""
        added: list[RegionRecord] = []
        with contextlib.ExitStack() as undo:
            for region in regions:
                page_idx = self._add_to_engine(region, undo)
                pages = region.size_bytes // PAGE_SIZE
                added.append(RegionRecord(region.addr, page_idx, pages, region.memfd, region.offset_bytes))
            together = (*self.manifest.regions, *added)
            if mapped_by is None:
                self.record(regions=together)
            else:
                ranges = [Range(item.addr, item.page_idx, item.pages) for item in added]
                self._add_ranges(mapped_by, ranges, regions=together)
            undo.pop_all()

    def _add_to_engine(self, region: Region, undo: contextlib.ExitStack) -> int:
        page_idx = self.backing.add_region(
            self.engine, self.memfds, region.memfd, region.offset_bytes, region.size_bytes
        )
        undo.callback(self.backing.undo_add_region, self.engine, page_idx)
        return page_idx

    async def remove_regions(self, regions: Sequence[Region]) -> None:
        """Forget whole regions. BusyError, with nothing changed, while a page of one is out or a job runs;
        NoSuchVMError if the VM ends meanwhile. What was begun is finished, also if the caller is cancelled.
        """
        if len(regions) > 1 and self.engine.stats().tracking:
            raise BusyError(
                "regions: the VM is enabled: take one region away at a time, or call Disable first"
            )
        for region in regions:
            record = self._record_at(region.memfd, region.offset_bytes)
            await asyncio.shield(asyncio.create_task(self._remove_region(record), name="unplug"))

    async def _remove_region(self, record: RegionRecord) -> None:
        await asyncio.to_thread(self.engine.remove_region, record.page_idx)
        if not self.engine.is_open:
            raise NoSuchVMError("the VM has ended")
        reach("memory.removed")
        for process in self.processes.values():
            process.ranges = tuple(_without(process.ranges, record))
        self.record(regions=tuple(item for item in self.manifest.regions if item != record))
        self.drop_unused_memfds()

    def _record_at(self, memfd: int, offset_bytes: int) -> RegionRecord:
        for item in self.manifest.regions:
            if item.memfd == memfd and 0 <= offset_bytes - item.offset_bytes < item.pages * PAGE_SIZE:
                return item
        raise InvalidRegionError(f"offset {offset_bytes} of memfd {memfd} is in no registered region")

    def range_of(self, region: Region) -> Range:
        """A part of guest memory at an address, in the engine's terms. InvalidRegionError."""
        record = self._record_at(region.memfd, region.offset_bytes)
        into, pages = (region.offset_bytes - record.offset_bytes) // PAGE_SIZE, region.size_bytes // PAGE_SIZE
        if into + pages > record.pages:
            raise InvalidRegionError(
                f"the memory at {region.addr:#x} belongs to more than one registered region"
            )
        return Range(region.addr, record.page_idx + into, pages)

    def retire(self) -> None:
        """The VM is given up, in the fd store too; nothing is asked of the engine any more."""
        with guarded("the fd store still has the fds of the VM that has ended"):
            self.store.remove_all()
        self.engine.retire()

    def free(self) -> None:
        """Then stop serving, and close everything, guest memory first. On a thread: see Engine.close()."""
        for number in list(self.memfds):
            with guarded("a memfd cannot be closed"):
                os.close(self.memfds.pop(number))
        with guarded("the engine cannot be closed"):
            self.engine.close()
        for process in self.processes.values():
            with guarded("the fds of a process cannot be closed"):
                process.close()
        with guarded("the record cannot be closed"):
            self.file.close()
            if self.mailbox is not None:
                os.close(self.mailbox)

    async def close(self) -> None:
        """Both."""
        self.retire()
        await asyncio.to_thread(self.free)


def _without(ranges: Sequence[Range], record: RegionRecord) -> Iterator[Range]:
    for item in ranges:
        if not record.page_idx <= item.page_idx < record.page_idx + record.pages:
            yield item
