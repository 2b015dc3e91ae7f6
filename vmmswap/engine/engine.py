# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine of one VM."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vmmswap.engine.c_config import EngineFds, fields_of
from vmmswap.engine.native import checked as _checked
from vmmswap.engine.native import ffi, lib, text_of
from vmmswap.engine.types import (
    EngineConfig,
    Job,
    Mode,
    Mover,
    PinOptions,
    Range,
    Recovered,
    SwapOutOptions,
    TierFds,
)
from vmmswap.engine.waking import WakeCalls
from vmmswap.errors import NoSpaceError, NoSuchVMError, VmmswapError
from vmmswap.file_system import kind_of
from vmmswap.later import module_later

if TYPE_CHECKING:
    from vmmswap.engine import events, reports
    from vmmswap.engine.reports import EngineEvent, EngineStats, Pages, TraceRecord
else:
    events = module_later("vmmswap.engine.events")
    reports = module_later("vmmswap.engine.reports")

_NO_LIMIT = 2**64 - 1
_NO_COUNTERS = ("mode", "job", "tracking")


class Engine(WakeCalls):
    """The engine of one VM. Use from one thread at a time, but for what says otherwise. Once closed, its
    calls raise NoSuchVMError.
    """

    def __init__(  # noqa: PLR0913  (one keyword for each optional fd)
        self,
        config: EngineConfig,
        *,
        page_map_fd: int | None = None,
        store_fd: int | None = None,
        wake_fd: int = -1,
        tier_fds: TierFds = TierFds(),  # noqa: B008 - frozen
        mover: Mover | None = None,
    ) -> None:
        """Make a new engine, or with the two fds of one that died its successor: then add the same regions in
        the same order and all processes, and call recover(). The fds stay the caller's, as do all fds given
        later. config.snapshot: store_fd is the snapshot's memory file, also of a new engine. tier_fds: of a
        predecessor with tiers, which may have a store_fd besides. wake_fd: a predecessor's record of
        wake-ups, if it had one. mover: then all memory is private.
        """
        swap_dir = ffi.new("char[]", os.fsencode(config.swap_dir))
        fds = EngineFds(page_map_fd, store_fd, wake_fd, tier_fds, mover)
        c_config = ffi.new("struct engine_config *", {"swap_dir": swap_dir, **fields_of(config, fds)})
        out = ffi.new("struct engine **")
        _checked(lib.engine_create, c_config, out)
        self._open = self._handle = out[0]  # _open: as long as it may be called
        self._is_stopped = False
        self._counting = threading.Lock()
        self._keeping_house = threading.Lock()
        self._walking = threading.Lock()  # over the page map, or guest memory
        disk_fd = self.tier_fds.disk if self.tier_fds.disk >= 0 else self.store_fd
        self.store_file_system = kind_of(disk_fd)  # here, because a file system may take its time
        self._trace_buffer = ffi.NULL
        self._trace_room = 0

    @property
    def _engine(self) -> Any:  # noqa: ANN401 - cffi's objects have no static types
        """Who waited for something may find the VM gone: a call must not reach what is freed."""
        if not self._open:
            raise NoSuchVMError("the VM has ended")
        return self._open

    @property
    def is_open(self) -> bool:
        """False once retired or closed: whoever waited for something may find the VM gone."""
        return bool(self._open)

    @property
    def _engine_unless_stopped(self) -> Any:  # noqa: ANN401 - cffi's objects have no static types
        """The same on another thread."""
        if self._is_stopped:
            raise NoSuchVMError("the VM has ended")
        return self._engine

    def add_region(self, memfd: int, offset_bytes: int, size_bytes: int) -> int:
        """Add guest memory; return the index of its first page, counted over all regions."""
        out = ffi.new("uint64_t *")
        _checked(lib.engine_add_region, self._engine, memfd, offset_bytes, size_bytes, out)
        return int(out[0])

    def add_snapshot_region(self, offset_bytes: int, size_bytes: int) -> int:
        """Add private memory that its process has registered, and whose bytes are at offset_bytes of the
        snapshot's file; return the index of its first page. It is served at once, and never goes out.
        """
        out = ffi.new("uint64_t *")
        _checked(lib.engine_add_snapshot_region, self._engine, offset_bytes, size_bytes, out)
        return int(out[0])

    def add_private_region(self, addr: int, size_bytes: int) -> int:
        """Add private memory that the VMM has at this address and moves itself; return the index of its first
        page. The first process that is added is the VMM.
        """
        out = ffi.new("uint64_t *")
        _checked(lib.engine_add_private_region, self._engine, addr, size_bytes, out)
        return int(out[0])

    def remove_region(self, page_idx: int) -> None:
        """Forget the region that starts at page_idx; BusyError while a page of it is out or a job runs. The
        larger it is, the longer that takes: on a thread of its own, beside all other calls. stop() ends it,
        with NoSuchVMError.
        """
        with self._walking:
            _checked(lib.engine_remove_region, self._engine_unless_stopped, page_idx)

    def undo_add_region(self, page_idx: int) -> None:
        """The same for a region that was added just now, whatever job runs."""
        _checked(lib.engine_undo_add_region, self._engine, page_idx)

    def add_process(self, uffd: int, ranges: Sequence[Range]) -> int:
        """Add a process that maps guest memory; return its id. The uffd must have had UFFDIO_API. While
        memory is tracked it is registered before this returns.
        """
        c_ranges = ffi.new("struct range[]", [_c_range(item) for item in ranges])
        out = ffi.new("uint32_t *")
        try:
            _checked(lib.engine_add_process, self._engine, uffd, c_ranges, len(ranges), out)
        except VmmswapError:
            self._release_rest()
            raise
        return int(out[0])

    def set_ranges(self, process_id: int, ranges: Sequence[Range]) -> None:
        """Where a process maps guest memory from now on. While memory is tracked what is new is registered.
        InvalidRegionError, with nothing changed, if that cannot be, or if two ranges overlap.
        """
        c_ranges = ffi.new("struct range[]", [_c_range(item) for item in ranges])
        _checked(lib.engine_set_ranges, self._engine, process_id, c_ranges, len(ranges))

    def register_again(self, process_id: int) -> None:
        """Of memory that was unmapped and mapped anew at its place, which loses that."""
        lib.engine_register_again(self._engine, process_id)

    def is_out(self, page_idx: int, pages: int) -> bool:
        """True if any page in the range is swapped out. On a thread of its own, as remove_region()."""
        with self._walking:
            return bool(lib.engine_is_out(self._engine_unless_stopped, page_idx, pages))

    def ranges_of(self, process_id: int) -> tuple[Range, ...]:
        """Where a process maps guest memory; none for a process that is not known."""
        room = int(lib.engine_ranges_of(self._engine, process_id, ffi.NULL, 0))
        found = ffi.new("struct range[]", max(1, room))
        count = min(room, int(lib.engine_ranges_of(self._engine, process_id, found, room)))
        return tuple(Range(int(item.addr), int(item.page_idx), int(item.pages)) for item in found[0:count])

    def remove_process(self, process_id: int) -> None:
        """Forget a process and close its uffd. One that lives, and has much memory, is unregistered beside
        all else, and served until then.
        """
        if _checked(lib.engine_remove_process, self._engine, process_id):
            self._release_rest()

    def _release_rest(self) -> None:
        threading.Thread(target=self.release_rest, name="unregister", daemon=True).start()

    def release_rest(self) -> None:
        """Return once all processes that were removed or refused are unregistered, which add_process() does
        first: one may come again. On a thread of its own, as remove_region().
        """
        with self._walking, contextlib.suppress(NoSuchVMError, NoSpaceError):
            _checked(lib.engine_release_rest, self._engine_unless_stopped)

    def register_dummy(self, process_id: int, addr: int) -> None:
        """Register a page that nobody touches, so that the kernel reports forks from now on."""
        _checked(lib.engine_register_dummy, self._engine, process_id, addr)

    def recover(self) -> Recovered:
        """Take over what a dead predecessor left, before start()."""
        pages = ffi.new("uint64_t *")
        job = ffi.new("uint32_t *")
        _checked(lib.engine_recover, self._engine, pages, job)
        return Recovered(int(pages[0]), Job(job[0]))

    def start(self) -> None:
        """Serve faults from now on."""
        _checked(lib.engine_start, self._engine)

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

    def start_flush(self) -> None:
        """Move all that is out and on RAM to disk; JobDone follows. BusyError while a job runs."""
        self._start_job(Job.FLUSH, SwapOutOptions())

    def _start_job(self, job: Job, options: SwapOutOptions) -> None:
        pins = options.pins or PinOptions()
        c_options = ffi.new(
            "struct swap_out_options *",
            {
                "mode": options.mode,
                "max_passes": options.max_passes,
                "until_resident_pages": options.until_resident_pages,
                "idle_pages_max": options.idle_pages_max,
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
        _checked(lib.engine_start_job, self._engine, job, c_options)

    def cancel(self) -> None:
        """Turn the running job back: it ends within one chunk, and JobDone(cancelled=True) follows."""
        lib.engine_cancel_job(self._engine)

    def set_budget(self, pages: int) -> None:
        """How many pages a swap-in may bring back from now on; it waits for more when they are used up. A new
        engine has no limit.
        """
        lib.engine_set_budget(self._engine, pages)

    def resume(self) -> None:
        """After Protected: resume the swap-out; the VMM's block layer was drained, and may run again."""
        lib.engine_continue_job(self._engine)

    def forget_job(self) -> None:
        """Do not resume the predecessor's job."""
        lib.engine_forget_job(self._engine)

    def housekeep(self) -> bool:
        """Give disk space of dropped pages back, a little at a time; True while there is more. It may wait
        for the disk: on a thread of its own, beside all other calls.
        """
        with self._keeping_house:
            return bool(self._handle) and bool(lib.engine_housekeep(self._handle))

    def host_is_short(self, is_short: bool) -> None:
        """Whether the host is short of memory: while it is, all that can move from RAM to disk does."""
        lib.engine_host_is_short(self._engine, is_short)

    @property
    def written_bytes(self) -> int:
        """Bytes written to disk since the VM registered, by all its monitors."""
        return int(lib.engine_written_bytes(self._engine))

    def limit_writes(self, max_bytes: int | None) -> None:
        """Up to where written_bytes may grow from now on; None: no limit."""
        lib.engine_limit_writes(self._engine, _NO_LIMIT if max_bytes is None else max_bytes)

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
        return events.event_of(notice) if lib.engine_take_notice(self._engine, notice) else None

    def events(self) -> list[EngineEvent]:
        """All that happened and was not taken yet, oldest first."""
        return list(iter(self.next_event, None))

    def take_lost(self) -> Pages:
        """What was lost since the last call."""
        incident = ffi.new("struct lost_incident *")
        lib.engine_take_lost(self._engine, incident)
        return events.pages_of(incident)

    def left(self) -> Pages:
        """What the last swap-out of this process left because it could not be read, stored or punched."""
        incident = ffi.new("struct lost_incident *")
        lib.engine_left_pages(self._engine, incident)
        return events.pages_of(incident)

    def _read_stats(self) -> Any:  # noqa: ANN401 - cffi's objects have no static types
        stats = ffi.new("struct engine_stats *")
        lib.engine_read_stats(self._engine, stats)
        return stats

    @property
    def is_tracking(self) -> bool:
        """Of stats()."""
        return bool(self._read_stats().tracking)

    def activity(self) -> tuple[int, ...]:
        """Of stats(): what changes while the guest is awake, a job runs, or the tiers are tended."""
        stats = self._read_stats()
        return (
            stats.job,
            stats.tracking,
            stats.fault_count,
            stats.swap_pages,
            stats.written_bytes,
            stats.stored_ram_bytes,
            stats.stored_disk_bytes,
        )

    def stats(self) -> EngineStats:
        """All counters now. Nothing stops for it."""
        stats = self._read_stats()
        counters = (name for name in reports.EngineStats.__slots__ if name not in _NO_COUNTERS)
        return reports.EngineStats(
            **{name: int(getattr(stats, name)) for name in counters},
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
        return text_of(lib.engine_pin_check(self._engine))

    def set_trace(self, on: bool) -> None:
        """Record page faults from now on, or no longer."""
        _checked(lib.engine_set_trace, self._engine, on)

    def drain_trace(self, limit: int = 4096) -> list[TraceRecord]:
        """Up to `limit` recorded faults, oldest first; again, until it returns none."""
        if self._trace_room < limit:
            self._trace_buffer = ffi.new("struct trace_record[]", limit)
            self._trace_room = limit
        count = int(lib.engine_drain_trace(self._engine, self._trace_buffer, limit))
        records = [
            reports.TraceRecord(int(item.time_ns), int(item.addr), int(item.process_id), int(item.flags))
            for item in self._trace_buffer[0:count]
        ]
        return sorted(records, key=lambda record: record.time_ns)

    @property
    def page_map_fd(self) -> int:
        """The page map's memfd, the engine's own: dup it to keep it."""
        return int(lib.engine_page_map_fd(self._engine))

    @property
    def store_fd(self) -> int:
        """The swap file, the engine's own: dup it to keep it. -1: there is none."""
        return int(lib.engine_store_fd(self._engine))

    @property
    def tier_fds(self) -> TierFds:
        """The engine's own, as store_fd is."""
        fds = lib.engine_tier_fds(self._engine)
        return TierFds(int(fds.segments), int(fds.ram), int(fds.disk), int(fds.key))

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
        with self._counting, self._walking:
            lib.engine_release_memory(self._handle)
        with self._keeping_house:
            engine, self._handle = self._handle, ffi.NULL
        lib.engine_destroy(engine)


def _c_range(item: Range) -> dict[str, int]:
    return {"addr": item.addr, "page_idx": item.page_idx, "pages": item.pages}
