# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VM has registered: its engine, memory and processes, each change told to the fd store.

Where the fds came from, a hand-off or an attach, does not matter here. Everything given is dup'ed or sent on;
what the caller gave stays the caller's to close.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vmmswap.config import Config
from vmmswap.engine import Engine, EngineConfig, EngineStats, Range
from vmmswap.errors import BusyError, InvalidRegionError
from vmmswap.handoff.fds import FileId, file_id
from vmmswap.handoff.messages import PAGE_SIZE, Region
from vmmswap.monitor import fdstore, snapshot
from vmmswap.monitor.fdstore import FdStore
from vmmswap.monitor.manifest import Manifest, ManifestFile, ProcessRecord, RegionRecord

_log = logging.getLogger("vmmswap.vm")

VMM_KEY = 0


@dataclass(frozen=True, slots=True)
class NewProcess:
    """A process to register. regions: memfd counts the VM's memfds. uffd: after UFFDIO_API, O_NONBLOCK."""

    pid: int
    pidfd: int
    uffd: int
    regions: tuple[Region, ...]
    dummy_page: int | None = None
    limits: tuple[str, ...] = ()  # what is not offered to it and why, for people
    is_proven: bool = True  # its uffd was seen to stop kernel-mode accesses too


@dataclass(frozen=True, slots=True)
class NewVm:
    """A VM to register. connection None: its end is not the VM's. snapshot: the memory file that its private
    memory comes from; there are no memfds then.
    """

    vmm: NewProcess
    memfds: tuple[int, ...]
    uid: int
    pins: bool = True
    qmp: str | None = None
    connection: int | None = None
    snapshot: int | None = None
    attached: bool = False
    forced: bool = False
    chosen: bool = False


@dataclass(slots=True)
class Process:
    """One address space that the engine serves."""

    key: int  # in the fd store; lives longer than the engine's number
    process_id: int  # the engine's
    pid: int  # 0: a forked child that has not been found
    pidfd: int  # ours; -1: none
    uffd: int  # to ask whether it is gone
    owns_uffd: bool  # False: a forked child's, which is the engine's own
    ranges: tuple[Range, ...]
    is_proven: bool = True

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
        if self.owns_uffd:
            os.close(self.uffd)


@dataclass(slots=True)
class Vm:
    engine: Engine
    manifest: Manifest
    file: ManifestFile
    store: FdStore
    memfds: dict[int, int] = field(default_factory=dict)  # number: fd, ours
    files: list[FileId] = field(default_factory=list)  # by number
    processes: dict[int, Process] = field(default_factory=dict)  # by the engine's number
    resident: snapshot.Resident | None = None  # of a snapshot's VM

    @property
    def vmm(self) -> Process:
        """The process that registered."""
        return next(process for process in self.processes.values() if process.key == VMM_KEY)

    @property
    def open_memfds(self) -> list[int]:
        return list(self.memfds.values())

    def stats(self) -> EngineStats:
        """The engine's counters; what is resident of private memory is counted in the process."""
        stats = self.engine.stats()
        return stats if self.resident is None else replace(stats, resident_pages=self.resident.pages())

    def count_in_process(self) -> None:
        """From now on, if the memory is private."""
        if self.manifest.snapshot:
            self.resident = snapshot.Resident(self.vmm.pid, self.vmm.ranges)

    def check_may_go_out(self) -> None:
        """NotSupportedError if nothing of this memory can be swapped out."""
        if self.manifest.snapshot:
            snapshot.refuse_to_go_out()

    def change(self, **values: object) -> None:
        """Change the record that a successor reads."""
        manifest = replace(self.manifest, **values)  # type: ignore[arg-type]  # the fields' own types
        self.file.write(manifest)
        self.manifest = manifest

    def record_processes(self) -> None:
        self.change(
            processes=tuple(
                ProcessRecord(
                    item.key,
                    item.pid,
                    tuple((r.addr, r.page_idx, r.pages) for r in item.ranges),
                    item.is_proven,
                )
                for item in self.processes.values()
            )
        )

    def handoff_regions(self) -> tuple[Region, ...]:
        """The VMM's regions as its hand-off session knows them."""
        return tuple(
            Region(item.addr, item.pages * PAGE_SIZE, item.offset_bytes, item.memfd)
            for item in self.manifest.regions
        )

    def add_process(self, new: NewProcess) -> Process:
        """Serve one more process. Nothing has changed if this raises."""
        ranges = tuple(self._range_of(region) for region in new.regions)
        key = self.manifest.next_key
        with contextlib.ExitStack() as undo:
            pidfd = _dup(new.pidfd, undo)
            process_id = self.engine.add_process(new.uffd, ranges)
            undo.callback(self.engine.remove_process, process_id)
            if new.dummy_page is not None:
                self.engine.register_dummy(process_id, new.dummy_page)
            process = Process(
                key, process_id, new.pid, pidfd, _dup(new.uffd, undo), True, ranges, new.is_proven
            )
            undo.callback(self.record_processes)
            undo.callback(self.processes.pop, process_id, None)
            undo.callback(self.store.remove, fdstore.uffd_name(process.key))
            undo.callback(self.store.remove, fdstore.pidfd_name(process.key))
            self._enter(process)
            undo.pop_all()
        return process

    def extend_process(self, process_id: int, regions: Sequence[Region]) -> None:
        """A process that is served maps further guest memory. What came before a region that cannot be served
        stays.
        """
        process = self.processes[process_id]
        try:
            for region in regions:
                item = self._range_of(region)
                self.engine.add_range(process_id, item)
                process.ranges = (*process.ranges, item)
        finally:
            self.record_processes()

    def add_child(self, process_id: int, parent_id: int, uffd: int) -> Process | None:
        """Take note of a forked child, which the engine serves already. None if its parent is not known.

        If this raises, the child is known all the same, but a successor will not have its userfaultfd.
        """
        parent = self.processes.get(parent_id)
        if parent is None:
            return None
        child = Process(
            self.manifest.next_key, process_id, 0, -1, uffd, False, parent.ranges, parent.is_proven
        )
        self._enter(child)
        return child

    def add_orphan(self, uffd: int, parent: ProcessRecord) -> None:
        """Serve a forked child whose uffd, ours from here on, a keeper saved; before the engine recovers."""
        ranges = tuple(Range(*item) for item in parent.ranges)
        process_id = self.engine.add_process(uffd, ranges)
        self._enter(Process(self.manifest.next_key, process_id, 0, -1, uffd, True, ranges, parent.is_proven))

    def _enter(self, process: Process) -> None:
        """The record first: a uffd in the store that no record speaks of could not be used."""
        self.processes[process.process_id] = process
        self.change(next_key=process.key + 1)
        self.record_processes()
        self.store.add(fdstore.uffd_name(process.key), process.uffd)
        if process.pidfd >= 0:
            self.store.add(fdstore.pidfd_name(process.key), process.pidfd)

    def found_pid(self, process: Process, pid: int, pidfd: int) -> None:
        """A forked child's pid is known now; the pidfd is the VM's from here on."""
        process.pid, process.pidfd = pid, pidfd
        self.record_processes()
        self.store.add(fdstore.pidfd_name(process.key), pidfd)

    def lost_pid(self, process: Process) -> None:
        """The pid was not this process's. Its pidfd, which nobody waits for any more, is closed."""
        self.store.remove(fdstore.pidfd_name(process.key))
        os.close(process.pidfd)
        process.pid, process.pidfd = 0, -1
        self.record_processes()

    def remove_process(self, process_id: int) -> Process | None:
        """Forget a process that has ended. None if it was forgotten before.

        Whoever waits for its pidfd in an event loop must have stopped that.
        """
        process = self.processes.pop(process_id, None)
        if process is None:
            return None
        self.engine.remove_process(process_id)
        process.close()
        self.store.remove(fdstore.uffd_name(process.key))
        self.store.remove(fdstore.pidfd_name(process.key))
        self.record_processes()
        return process

    def add_memfds(self, fds: Sequence[int]) -> None:
        """Memfds that regions will lie in; they get the next numbers."""
        with contextlib.ExitStack() as undo:
            for number, fd in enumerate(fds, len(self.files)):
                own = _dup(fd, undo)
                undo.callback(self.store.remove, fdstore.memfd_name(number))
                self.store.add(fdstore.memfd_name(number), own)
                self.memfds[number] = own
                undo.callback(self.memfds.pop, number)
                self.files.append(file_id(own))
                undo.callback(self.files.pop)
            self.change(memfds=tuple(self.memfds))
            undo.pop_all()

    def forget_memfds(self, count: int) -> None:
        """Undo the last add_memfds()."""
        for _ in range(count):
            self.files.pop()
            number = len(self.files)
            self.store.remove(fdstore.memfd_name(number))
            os.close(self.memfds.pop(number))
        self.change(memfds=tuple(self.memfds))

    def reopen_memfd(self, number: int, fd: int) -> None:
        """A memfd that was given up when its last region went is in use again."""
        with contextlib.ExitStack() as undo:
            own = _dup(fd, undo)
            self.store.add(fdstore.memfd_name(number), own)
            self.memfds[number] = own
            self.change(memfds=tuple(self.memfds))
            undo.pop_all()

    def drop_unused_memfds(self) -> None:
        """A memfd that we hold keeps its memory allocated, even if the VMM has closed it."""
        used = {region.memfd for region in self.manifest.regions}
        for number in [number for number in self.memfds if number not in used]:
            self.store.remove(fdstore.memfd_name(number))
            os.close(self.memfds.pop(number))
        self.change(memfds=tuple(self.memfds))

    def add_regions(self, regions: Sequence[Region], *, mapped_by: int | None) -> None:
        """Add guest memory; mapped_by: the engine's number of the process that maps it already."""
        before = self.manifest
        with contextlib.ExitStack() as undo:
            undo.callback(lambda: self.change(regions=before.regions))
            for region in regions:
                pages = region.size_bytes // PAGE_SIZE
                if self.manifest.snapshot:  # registration only, which gives the engine up if it fails
                    page_idx = self.engine.add_snapshot_region(region.offset_bytes, region.size_bytes)
                else:
                    page_idx = self.engine.add_region(
                        self.memfds[region.memfd], region.offset_bytes, region.size_bytes
                    )
                    undo.callback(self.engine.remove_region, page_idx)
                record = RegionRecord(region.addr, page_idx, pages, region.memfd, region.offset_bytes)
                self.change(regions=(*self.manifest.regions, record))
                if mapped_by is not None:
                    self._add_range(mapped_by, Range(region.addr, page_idx, pages), undo)
            undo.pop_all()

    def _add_range(self, process_id: int, item: Range, undo: contextlib.ExitStack) -> None:
        process = self.processes[process_id]
        self.engine.add_range(process_id, item)
        before, process.ranges = process.ranges, (*process.ranges, item)

        def forget() -> None:  # the engine forgets the range with the region
            process.ranges = before
            self.record_processes()

        undo.callback(forget)
        self.record_processes()

    def remove_regions(self, regions: Sequence[Region]) -> None:
        """Forget whole regions. BusyError, with nothing changed, while a page of one is out or a job runs."""
        if len(regions) > 1 and self.engine.stats().tracking:
            raise BusyError(
                "regions: the VM is enabled: take one region away at a time, or call Disable first"
            )
        for region in regions:
            record = self._record_at(region.memfd, region.offset_bytes)
            self.engine.remove_region(record.page_idx)
            self.change(regions=tuple(item for item in self.manifest.regions if item != record))
            for process in self.processes.values():
                process.ranges = tuple(_without(process.ranges, record))
        self.record_processes()
        self.drop_unused_memfds()

    def _record_at(self, memfd: int, offset_bytes: int) -> RegionRecord:
        for item in self.manifest.regions:
            if item.memfd == memfd and 0 <= offset_bytes - item.offset_bytes < item.pages * PAGE_SIZE:
                return item
        raise InvalidRegionError(f"offset {offset_bytes} of memfd {memfd} is in no registered region")

    def _range_of(self, region: Region) -> Range:
        record = self._record_at(region.memfd, region.offset_bytes)
        page_idx = record.page_idx + (region.offset_bytes - record.offset_bytes) // PAGE_SIZE
        return Range(region.addr, page_idx, region.size_bytes // PAGE_SIZE)

    def close(self) -> None:
        """Stop serving and give all up, the fd store's part too. Waits for a running job's chunk."""
        self.store.remove_all()
        self.engine.close()
        for fd in self.memfds.values():
            os.close(fd)
        for process in self.processes.values():
            process.close()
        self.file.close()


def engine_config(config: Config, swap_dir: Path, *, is_snapshot: bool) -> EngineConfig:
    return EngineConfig(swap_dir, config.fault_threads, config.spin_us, config.workers, is_snapshot)


def register(name: str, new: NewVm, config: Config, swap_dir: Path, store: FdStore) -> Vm:
    """Set a VM up; the dummy page is registered then. Nothing is left of it if this raises.

    What is in the fd store is safe there only after store.barrier(). Then engine.start(), and no earlier: a
    page that was brought in, or an event that was read, must not be forgotten with a record that was not
    kept.
    """
    with contextlib.ExitStack() as undo:
        engine = Engine(
            engine_config(config, swap_dir, is_snapshot=new.snapshot is not None), store_fd=new.snapshot
        )
        undo.callback(engine.close)
        file = ManifestFile()
        undo.callback(file.close)
        manifest = Manifest(
            name=name,
            uid=new.uid,
            pins=new.pins,
            qmp=new.qmp or "",
            attached=new.attached,
            snapshot=new.snapshot is not None,
            wants_out=new.snapshot is not None,  # until Disable: what the guest has not had stays out
            forced=new.forced,
            chosen=new.chosen,
            config=config.to_json(),
        )
        vm = Vm(engine, manifest, file, store)
        undo.callback(_close_fds, vm)
        undo.callback(store.remove_all)
        vm.change()
        vm.add_memfds(new.memfds)
        vm.add_regions(new.vmm.regions, mapped_by=None)
        vm.add_process(new.vmm)
        store.add(fdstore.PAGE_MAP, engine.page_map_fd)
        store.add(fdstore.STORE, engine.store_fd)
        if new.connection is not None:
            store.add(fdstore.CONNECTION, new.connection)
        store.add(fdstore.MANIFEST, file.fd)
        undo.pop_all()
    return vm


def _close_fds(vm: Vm) -> None:
    for fd in vm.memfds.values():
        os.close(fd)
    for process in vm.processes.values():
        process.close()


def _dup(fd: int, undo: contextlib.ExitStack) -> int:
    own = os.dup(fd)  # close-on-exec
    undo.callback(os.close, own)
    return own


def _without(ranges: Sequence[Range], record: RegionRecord) -> Iterator[Range]:
    for item in ranges:
        if not record.page_idx <= item.page_idx < record.page_idx + record.pages:
            yield item
