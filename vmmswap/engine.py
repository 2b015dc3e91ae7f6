# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine of one VM, typed. All that happens per page or while a guest thread waits is in C (engine/src/).

Calls release the GIL. None blocks for longer than a system call, except where it says so. All errors are
vmmswap.errors classes.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmmswap.errors import InternalError, NoSuchVMError, VmmswapError, from_errno

if os.environ.get("VMMSWAP_ENGINE") == "failpoints":
    from vmmswap._engine_failpoints import ffi, lib
else:
    from vmmswap._engine import ffi, lib

_NO_PAGE = 2**64 - 1


class Job(enum.IntEnum):
    """A long job of the engine. The values are those of enum job_kind."""

    NONE = 0
    SWAP_OUT = 1
    SWAP_IN = 2
    TRIM = 3


class Mode(enum.IntEnum):
    """How a swap-out keeps the guest from changing what is being stored (enum swap_mode)."""

    NONE = 0
    LIVE = 1
    FREEZE = 2
    AUTO = 3


@dataclass(frozen=True, slots=True)
class Range:
    """One mapping of guest memory in one process: `pages` pages from page_idx on are mapped at addr."""

    addr: int
    page_idx: int
    pages: int


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """swap_dir: where the store's unnamed file goes. fault_threads 0: one for each usable CPU, at most four.
    spin_us: how long a fault thread looks for a further event before it sleeps. workers: threads of a long
    job. snapshot: guest memory is private and comes from a snapshot's memory file, which is the store.
    store_max_bytes: what the VM may occupy on the disk; store_keep_free_bytes: what it leaves free there;
    0: no limit.
    """

    swap_dir: Path
    fault_threads: int = 0
    spin_us: int = 0
    workers: int = 3
    snapshot: bool = False
    store_max_bytes: int = 0
    store_keep_free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PinOptions:
    """Which ways of seeing pinned pages may be used; the engine takes the first that works (docs/pins.md)."""

    bpf: bool = True
    collapse: bool = True
    qmp_drained: bool = False
    promised_unpinned: bool = False
    settle_ms: int = 0  # 0: do not fall back to waiting


@dataclass(frozen=True, slots=True)
class SwapOutOptions:
    """pins None: nothing is looked at, for memory that nothing can pin."""

    mode: Mode = Mode.AUTO
    max_passes: int = 1
    until_resident_pages: int = 0
    freeze_timeout_ms: int = 10000
    freeze_limit_ms: int = 0
    pins: PinOptions | None = PinOptions()


@dataclass(frozen=True, slots=True)
class ProcessForked:
    """A process of the VM forked; the child is served from now on. uffd: in our fd table."""

    process_id: int
    parent_id: int
    uffd: int


@dataclass(frozen=True, slots=True)
class ProcessGone:
    """A process's uffd answered ESRCH: it died or called exec."""

    process_id: int


@dataclass(frozen=True, slots=True)
class ProcessMoved:
    """A process has guest memory elsewhere, or less of it: ask for its ranges."""

    process_id: int


@dataclass(frozen=True, slots=True)
class JobDone:
    """A job ended. cancelled: it was turned back, and has done a part."""

    job: Job
    error: VmmswapError | None
    cancelled: bool


@dataclass(frozen=True, slots=True)
class PagePoisoned:
    """A page cannot be read back; whoever touches it gets SIGBUS."""

    page_idx: int
    message: str


@dataclass(frozen=True, slots=True)
class PageHealed:
    """A poisoned page could be read after all."""

    page_idx: int


@dataclass(frozen=True, slots=True)
class PagesLost:
    """Pages that were out have been filled by something else: take_lost() has which. Told once until then."""


@dataclass(frozen=True, slots=True)
class PagesLeft:
    """A swap-out has ended and left pages behind, the first one for this reason: left() has which."""

    message: str


@dataclass(frozen=True, slots=True)
class PageRange:
    """Pages of guest memory, counted over all regions."""

    page_idx: int
    pages: int


@dataclass(frozen=True, slots=True)
class Pages:
    """How many pages, and which, as far as that was noted; ascending."""

    pages: int
    ranges: tuple[PageRange, ...]


@dataclass(frozen=True, slots=True)
class FaultsStarved:
    """A page fault waits because there is no memory for its page. Told once until starvation_over()."""

    page_idx: int


@dataclass(frozen=True, slots=True)
class Protected:
    """A swap-out with pins.qmp_drained has protected all and waits for resume()."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the VMM or a stranger did and a person must know. page_idx None: about no page."""

    message: str
    page_idx: int | None


EngineEvent = (
    ProcessForked
    | ProcessGone
    | ProcessMoved
    | JobDone
    | PagePoisoned
    | PageHealed
    | PagesLeft
    | PagesLost
    | FaultsStarved
    | Protected
    | Notice
)


@dataclass(frozen=True, slots=True)
class TraceRecord:
    """One page fault. time_ns: CLOCK_MONOTONIC. addr: as the kernel gave it. flags: UFFD_PAGEFAULT_FLAG_*."""

    time_ns: int
    addr: int
    process_id: int
    flags: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """struct engine_stats: see engine/src/engine.h."""

    resident_pages: int
    total_pages: int
    copied_pages: int
    zeroed_pages: int
    redundant_pages: int
    swap_pages: int
    progress_pages: int
    swap_time_ms: int
    pause_us: int
    fault_count: int
    fault_p50_ns: int
    fault_p99_ns: int
    stored_ram_bytes: int
    stored_disk_bytes: int
    written_bytes: int
    processes: int
    poisoned_pages: int
    pinned_pages: int
    kept_pages: int
    left_pages: int
    lost_pages: int
    trace_dropped: int
    mode: Mode
    job: Job
    tracking: bool


_COUNTERS = tuple(name for name in EngineStats.__slots__ if name not in ("mode", "job", "tracking"))


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a successor found: how many pages are out, and what the predecessor was doing when it died."""

    out_pages: int
    last_job: Job


def _text(chars: Any) -> str:  # noqa: ANN401 - cffi's objects have no static types
    return bytes(ffi.string(chars)).decode(errors="replace")


class Engine:
    """The engine of one VM. Use from one thread at a time, but for what says otherwise. Once closed, its
    calls raise NoSuchVMError.
    """

    def __init__(
        self, config: EngineConfig, *, page_map_fd: int | None = None, store_fd: int | None = None
    ) -> None:
        """Make a new engine, or with the two fds of one that died its successor: then add the same regions in
        the same order and all processes, and call recover(). The fds stay the caller's, as do all fds given
        later. config.snapshot: store_fd is the snapshot's memory file, also of a new engine.
        """
        swap_dir = ffi.new("char[]", os.fsencode(config.swap_dir))
        c_config = ffi.new(
            "struct engine_config *",
            {
                "swap_dir": swap_dir,
                "fault_threads": config.fault_threads,
                "spin_us": config.spin_us,
                "workers": config.workers,
                "page_map_fd": -1 if page_map_fd is None else page_map_fd,
                "store_fd": -1 if store_fd is None else store_fd,
                "snapshot": config.snapshot,
                "store_max_bytes": config.store_max_bytes,
                "store_keep_free_bytes": config.store_keep_free_bytes,
            },
        )
        self._error = ffi.new("struct error *")
        out = ffi.new("struct engine **")
        self._check(lib.engine_create(c_config, out, self._error))
        self._open = self._handle = out[0]  # _open: as long as it may be called
        self._is_stopped = False
        self._counting = threading.Lock()
        self._keeping_house = threading.Lock()
        self._trace_buffer = ffi.NULL
        self._trace_room = 0

    @property
    def _engine(self) -> Any:  # noqa: ANN401 - cffi's objects have no static types
        """Who waited for something may find the VM gone: a call must not reach what is freed."""
        if not self._open:
            raise NoSuchVMError("the VM has ended")
        return self._open

    def _check(self, rc: int) -> None:
        if rc < 0:
            raise from_errno(-rc, _text(self._error.message))

    def add_region(self, memfd: int, offset_bytes: int, size_bytes: int) -> int:
        """Add guest memory; return the index of its first page, counted over all regions."""
        out = ffi.new("uint64_t *")
        self._check(lib.engine_add_region(self._engine, memfd, offset_bytes, size_bytes, out, self._error))
        return int(out[0])

    def add_snapshot_region(self, offset_bytes: int, size_bytes: int) -> int:
        """Add private memory that its process has registered, and whose bytes are at offset_bytes of the
        snapshot's file; return the index of its first page. It is served at once, and never goes out.
        """
        out = ffi.new("uint64_t *")
        self._check(lib.engine_add_snapshot_region(self._engine, offset_bytes, size_bytes, out, self._error))
        return int(out[0])

    def remove_region(self, page_idx: int) -> None:
        """Forget the region that starts at page_idx; BusyError while a page of it is out or a job runs."""
        self._check(lib.engine_remove_region(self._engine, page_idx, self._error))

    def undo_add_region(self, page_idx: int) -> None:
        """The same for a region that was added just now, whatever job runs."""
        self._check(lib.engine_undo_add_region(self._engine, page_idx, self._error))

    def add_process(self, uffd: int, ranges: Sequence[Range]) -> int:
        """Add a process that maps guest memory; return its id. The uffd must have had UFFDIO_API. While
        memory is tracked it is registered before this returns.
        """
        c_ranges = ffi.new("struct range[]", [_c_range(item) for item in ranges])
        out = ffi.new("uint32_t *")
        self._check(lib.engine_add_process(self._engine, uffd, c_ranges, len(ranges), out, self._error))
        return int(out[0])

    def set_ranges(self, process_id: int, ranges: Sequence[Range]) -> None:
        """Where a process maps guest memory from now on. While memory is tracked what is new is registered.
        InvalidRegionError, with nothing changed, if that cannot be, or if two ranges overlap.
        """
        c_ranges = ffi.new("struct range[]", [_c_range(item) for item in ranges])
        self._check(lib.engine_set_ranges(self._engine, process_id, c_ranges, len(ranges), self._error))

    def register_again(self, process_id: int) -> None:
        """Of memory that was unmapped and mapped anew at its place, which loses that."""
        lib.engine_register_again(self._engine, process_id)

    def is_out(self, page_idx: int, pages: int) -> bool:
        """Whether any of these pages is."""
        return bool(lib.engine_is_out(self._engine, page_idx, pages))

    def ranges_of(self, process_id: int) -> tuple[Range, ...]:
        """Where a process maps guest memory; none for a process that is not known."""
        room = int(lib.engine_ranges_of(self._engine, process_id, ffi.NULL, 0))
        found = ffi.new("struct range[]", max(1, room))
        count = min(room, int(lib.engine_ranges_of(self._engine, process_id, found, room)))
        return tuple(Range(int(item.addr), int(item.page_idx), int(item.pages)) for item in found[0:count])

    def remove_process(self, process_id: int) -> None:
        """Forget a process and close its uffd."""
        self._check(lib.engine_remove_process(self._engine, process_id, self._error))

    def register_dummy(self, process_id: int, addr: int) -> None:
        """Register a page that nobody touches, so that the kernel reports forks from now on."""
        self._check(lib.engine_register_dummy(self._engine, process_id, addr, self._error))

    def recover(self) -> Recovered:
        """Take over what a dead predecessor left, before start()."""
        pages = ffi.new("uint64_t *")
        job = ffi.new("uint32_t *")
        self._check(lib.engine_recover(self._engine, pages, job, self._error))
        return Recovered(int(pages[0]), Job(job[0]))

    def start(self) -> None:
        """Serve faults from now on."""
        self._check(lib.engine_start(self._engine, self._error))

    def stop(self) -> None:
        """Stop all threads, turning a running job back. events() then has the last ones: a forked child that
        they do not tell of was never read.
        """
        self._is_stopped = True
        lib.engine_stop(self._engine)

    def start_swap_out(self, options: SwapOutOptions) -> None:
        """Swap all out; JobDone follows. BusyError while a job runs."""
        self._start_job(Job.SWAP_OUT, options)

    def start_swap_in(self) -> None:
        """Swap all in and then unregister guest memory; faults are served meanwhile. JobDone follows."""
        self._start_job(Job.SWAP_IN, SwapOutOptions())

    def start_trim(self, options: SwapOutOptions) -> None:
        """Give back what need not be held, without waking the guest; JobDone follows."""
        self._start_job(Job.TRIM, options)

    def _start_job(self, job: Job, options: SwapOutOptions) -> None:
        pins = options.pins or PinOptions()
        c_options = ffi.new(
            "struct swap_out_options *",
            {
                "mode": options.mode,
                "max_passes": options.max_passes,
                "until_resident_pages": options.until_resident_pages,
                "freeze_timeout_ms": options.freeze_timeout_ms,
                "freeze_limit_ms": options.freeze_limit_ms,
                "check_pins": options.pins is not None,
                "pins": {
                    "allow_bpf": pins.bpf,
                    "allow_collapse": pins.collapse,
                    "qmp_drained": pins.qmp_drained,
                    "promised_unpinned": pins.promised_unpinned,
                    "allow_settle": pins.settle_ms > 0,
                    "settle_ms": pins.settle_ms,
                },
            },
        )
        self._check(lib.engine_start_job(self._engine, job, c_options, self._error))

    def cancel(self) -> None:
        """Turn the running job back: it ends within one chunk, and JobDone(cancelled=True) follows."""
        lib.engine_cancel_job(self._engine)

    def set_budget(self, pages: int) -> None:
        """How many pages a swap-in may bring back from now on; it waits for more when they are used up. A new
        engine has no limit.
        """
        lib.engine_set_budget(self._engine, pages)

    def resume(self) -> None:
        """After Protected: the VMM's block layer was drained and may go on; the swap-out goes on."""
        lib.engine_continue_job(self._engine)

    def forget_job(self) -> None:
        """What the predecessor was doing is not gone on with."""
        lib.engine_forget_job(self._engine)

    def housekeep(self) -> bool:
        """Give disk space of dropped pages back, a little at a time; True while there is more. It may wait
        for the disk: on a thread of its own, beside all other calls.
        """
        with self._keeping_house:
            return bool(self._handle) and bool(lib.engine_housekeep(self._handle))

    @property
    def needs_count(self) -> bool:
        """True if stats().resident_pages is only as good as the last count, because the VMM's files are
        larger than guest memory.
        """
        return bool(lib.engine_needs_count(self._engine))

    def count_resident(self) -> None:
        """Count them, some 40 to 80 ms a GiB: on a thread of its own, beside all other calls. stop() ends
        it.
        """
        with self._counting:
            if self._handle and not self._is_stopped:
                lib.engine_count_resident(self._handle)

    @property
    def event_fd(self) -> int:
        """Readable while next_event() has something."""
        return int(lib.engine_notices_fd(self._engine))

    def next_event(self) -> EngineEvent | None:
        """The oldest thing that happened and was not taken yet. Whoever takes it is the only one to know."""
        notice = ffi.new("struct notice *")
        return _event_of(notice) if lib.engine_take_notice(self._engine, notice) else None

    def events(self) -> list[EngineEvent]:
        """All that happened and was not taken yet, oldest first."""
        return list(iter(self.next_event, None))

    def take_lost(self) -> Pages:
        """What was lost since the last call."""
        incident = ffi.new("struct lost_incident *")
        lib.engine_take_lost(self._engine, incident)
        return _pages_of(incident)

    def left(self) -> Pages:
        """What the last swap-out of this process left because it could not be read, stored or punched."""
        incident = ffi.new("struct lost_incident *")
        lib.engine_left_pages(self._engine, incident)
        return _pages_of(incident)

    def stats(self) -> EngineStats:
        """All counters now. Nothing stops for it."""
        stats = ffi.new("struct engine_stats *")
        lib.engine_read_stats(self._engine, stats)
        return EngineStats(
            **{name: int(getattr(stats, name)) for name in _COUNTERS},
            mode=Mode(stats.last_mode),
            job=Job(stats.job),
            tracking=bool(stats.tracking),
        )

    def starvation_over(self) -> bool:
        """After FaultsStarved: whether no page fault waits for want of memory any more."""
        return bool(lib.engine_end_starvation(self._engine))

    @property
    def pin_check(self) -> str:
        """How the last swap-out saw pins: bpf, collapse, qmp, promise, settle, none; "" before that."""
        return _text(lib.engine_pin_check(self._engine))

    def set_trace(self, on: bool) -> None:
        """Record page faults from now on, or no longer."""
        self._check(lib.engine_set_trace(self._engine, on, self._error))

    def drain_trace(self, limit: int = 4096) -> list[TraceRecord]:
        """Up to `limit` recorded faults, oldest first; again, until it returns none."""
        if self._trace_room < limit:
            self._trace_buffer = ffi.new("struct trace_record[]", limit)
            self._trace_room = limit
        count = int(lib.engine_drain_trace(self._engine, self._trace_buffer, limit))
        records = [
            TraceRecord(int(item.time_ns), int(item.addr), int(item.process_id), int(item.flags))
            for item in self._trace_buffer[0:count]
        ]
        return sorted(records, key=lambda record: record.time_ns)

    @property
    def page_map_fd(self) -> int:
        """The page map's memfd, the engine's own: dup it to keep it."""
        return int(lib.engine_page_map_fd(self._engine))

    @property
    def store_fd(self) -> int:
        """The swap file, the engine's own: dup it to keep it."""
        return int(lib.engine_store_fd(self._engine))

    def retire(self) -> None:
        """From now on all calls but close() raise NoSuchVMError."""
        self._open = ffi.NULL

    def close(self) -> None:
        """Stop all threads, then close everything, the memfds first: a VM's memory stays allocated on them.
        Takes as long as a running job's chunk, the kernel with what is freed, and the disk: once retired, on
        a thread. Touches nothing of the guest: what is out stays out.
        """
        self.retire()
        if not self._handle:
            return
        self._is_stopped = True
        lib.engine_stop(self._handle)
        with self._counting:
            lib.engine_release_memory(self._handle)
        with self._keeping_house:
            engine, self._handle = self._handle, ffi.NULL
        lib.engine_destroy(engine)


def _pages_of(incident: Any) -> Pages:  # noqa: ANN401 - cffi's objects have no static types
    ranges = incident.ranges[0 : incident.ranges_n]
    return Pages(
        int(incident.pages), tuple(PageRange(int(item.page_idx), int(item.pages)) for item in ranges)
    )


def _c_range(item: Range) -> dict[str, int]:
    return {"addr": item.addr, "page_idx": item.page_idx, "pages": item.pages}


def _event_of(notice: Any) -> EngineEvent:  # noqa: ANN401 - cffi's objects have no static types
    message, page_idx = _text(notice.message), int(notice.page_idx)
    match notice.kind:
        case lib.NOTICE_PROCESS_FORKED:
            event: EngineEvent = ProcessForked(int(notice.process_id), int(notice.parent_id), int(notice.fd))
        case lib.NOTICE_PROCESS_GONE:
            event = ProcessGone(int(notice.process_id))
        case lib.NOTICE_PROCESS_MOVED:
            event = ProcessMoved(int(notice.process_id))
        case lib.NOTICE_JOB_DONE:
            error = from_errno(int(notice.code), message) if notice.code else None
            event = JobDone(Job(notice.job), error, bool(notice.cancelled))
        case lib.NOTICE_PAGE_POISONED:
            event = PagePoisoned(page_idx, message)
        case lib.NOTICE_PAGE_HEALED:
            event = PageHealed(page_idx)
        case lib.NOTICE_PAGES_LEFT:
            event = PagesLeft(message)
        case lib.NOTICE_PAGES_LOST:
            event = PagesLost()
        case lib.NOTICE_FAULTS_STARVED:
            event = FaultsStarved(page_idx)
        case lib.NOTICE_PROTECTED:
            event = Protected()
        case _:
            event = Notice(message, None if page_idx == _NO_PAGE else page_idx)
    return event


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping of guest memory in some process; file_idx: which of the memfds asked for."""

    pid: int
    addr: int
    size_bytes: int
    offset_bytes: int
    file_idx: int
    is_private: bool  # MAP_PRIVATE: no userfaultfd of it can bring the file's pages back


def _files_of(memfds: Sequence[int]) -> Any:  # noqa: ANN401 - cffi's objects have no static types
    files = ffi.new("struct mapped_file[]", max(1, len(memfds)))
    for idx, fd in enumerate(memfds):
        rc = lib.mappers_file_of(fd, ffi.addressof(files, idx))
        if rc < 0:
            raise from_errno(-rc, f"cannot look at fd {fd}: {os.strerror(-rc)}")
    return files


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has one of the memfds asked for open; file_idx: which."""

    pid: int
    fd: int  # in that process
    file_idx: int


def holders_of(memfds: Sequence[int]) -> list[Holder]:
    """Who has these files open, but for this process and those that share its fds. Processes whose fds may
    not be seen are left out.
    """
    files = _files_of(memfds)
    found = ffi.new("struct holder_list *")
    rc = lib.holders_find(files, len(memfds), found)
    if rc < 0:
        raise from_errno(-rc, f"cannot look through /proc: {os.strerror(-rc)}")
    try:
        return [
            Holder(int(item.pid), int(item.fd), int(item.file_idx))
            for item in (found.holders[idx] for idx in range(found.holders_n))
        ]
    finally:
        lib.holders_free(found)


def mappings_of(
    memfds: Sequence[int], pids: Collection[int] | None = None
) -> tuple[list[Mapping], list[int]]:
    """All mappings of these files in other processes, or in these, and the pids whose maps cannot be read."""
    found = ffi.new("struct mapper_list *")
    if pids is None:
        return _found(lib.mappers_find(_files_of(memfds), len(memfds), found), found)
    numbers = ffi.new("pid_t[]", sorted(pids) or [0])
    among = ffi.new("struct pid_list *", {"pids": numbers, "pids_n": len(pids)})
    return _found(lib.mappers_among(among, _files_of(memfds), len(memfds), found), found)


class MapperWatch:
    """As mappings_of(), for whoever looks again and again: reads the maps only of processes that have
    changed, and of the others in turn. One look at a time.
    """

    def __init__(self) -> None:
        out = ffi.new("struct mapper_watch **")
        if lib.mapper_watch_create(out) < 0:
            raise MemoryError
        self._watch = ffi.gc(out[0], lib.mapper_watch_destroy)

    def look(self, memfds: Sequence[int]) -> tuple[list[Mapping], list[int]]:
        found = ffi.new("struct mapper_list *")
        return _found(lib.mapper_watch_look(self._watch, _files_of(memfds), len(memfds), found), found)


def _found(rc: int, found: Any) -> tuple[list[Mapping], list[int]]:  # noqa: ANN401 - cffi's objects have no static types
    try:
        if rc < 0:
            raise from_errno(-rc, f"cannot look through /proc: {os.strerror(-rc)}")
        mappings = [
            Mapping(
                *(int(m.pid), int(m.addr), int(m.size_bytes), int(m.offset_bytes), int(m.file_idx)),
                bool(m.is_private),
            )
            for m in (found.mappings[i] for i in range(found.mappings_n))
        ]
        unreadable = [int(found.unreadable.pids[i]) for i in range(found.unreadable.pids_n)]
    finally:
        lib.mappers_free(found)
    return mappings, unreadable


def registered_buffer_in(ranges: Sequence[tuple[int, int, int]]) -> str | None:
    """Whether an io_uring of these processes has a registered buffer in their guest memory: what a person
    must know of it, or None. ranges: (pid, addr, size_bytes).
    """
    c_ranges = ffi.new("struct uring_range[]", max(1, len(ranges)))
    for idx, (pid, addr, size_bytes) in enumerate(ranges):
        c_ranges[idx].pid, c_ranges[idx].addr, c_ranges[idx].size_bytes = pid, addr, size_bytes
    found = ffi.new("struct uring_found *")
    error = ffi.new("struct error *")
    rc = lib.uring_buffers_find(c_ranges, len(ranges), found, error)
    if rc < 0:
        raise from_errno(-rc, _text(error.message))
    return _text(error.message) if rc else None


def start_probe_read(pid: int, addr: int, go_fd: int) -> int:
    """Start a child that reads one byte of a process in kernel mode once a byte comes through go_fd.

    Returns its pid, which the caller waits for.

    Its status is 0, or the errno of process_vm_readv(). OSError if it cannot be started.
    """
    child = int(lib.probe_read_start(pid, addr, go_fd))
    if child < 0:
        raise OSError(-child, f"cannot start a process: {os.strerror(-child)}")
    return child


def try_collapse() -> bool | None:
    """Whether this kernel fills holes of shared memory with zeros where a userfaultfd is registered, when it
    makes a huge page of what surrounds them; tried on memory of our own. None: nothing can be collapsed now.
    """
    error = ffi.new("struct error *")
    rc = lib.collapse_try_holes(error)
    if rc < 0:
        raise from_errno(-rc, _text(error.message))
    return None if rc == lib.COLLAPSE_UNKNOWN else bool(rc == lib.COLLAPSE_FILLS_HOLES)


def failpoint_names() -> list[str]:
    """Every failpoint that the engine knows."""
    names: list[str] = []
    while (name := lib.failpoint_name(len(names))) != ffi.NULL:
        names.append(_text(name))
    return names


def arm_failpoints(text: str) -> None:
    """Arm failpoints (engine/src/base/failpoint.h has the syntax); only in the engine built for tests."""
    rc = lib.failpoint_arm(text.encode())
    if rc < 0:
        raise InternalError(f"cannot arm failpoints {text!r}: {os.strerror(-rc)}")


def failpoint_hits(name: str) -> int:
    """How often a failpoint was reached."""
    return int(lib.failpoint_hits(name.encode()))
