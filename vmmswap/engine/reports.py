# SPDX-License-Identifier: GPL-2.0-or-later
"""What the engine reports: events, figures, page faults. A successor serves before it loads this."""

from __future__ import annotations

from dataclasses import dataclass

from vmmswap.engine.types import Job, Mode
from vmmswap.errors import VmmswapError


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
    """A job ended. cancelled: it was cancelled, and has done a part. limit: which limit of the store stopped
    it, and what to do, for people; what is out stays out, and the rest stays resident.
    """

    job: Job
    error: VmmswapError | None
    cancelled: bool
    limit: str = ""


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
class Waking:
    """The guest touches what it touched at earlier wake-ups. Told once for each wake-up."""


@dataclass(frozen=True, slots=True)
class ReplayDone:
    """A replay has ended. error: why before its end. cancelled: it was cancelled, and has done a part."""

    error: VmmswapError | None
    cancelled: bool


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
    | Waking
    | ReplayDone
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
    used_slots: int
    same_filled_pages: int
    raw_pages: int
    record_bytes: int
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
    limited_by: int
    wake_set_pages: int
    idle_set_pages: int
    prefetched_pages: int
    wasted_pages: int
    wake_ms: int
    faults_per_second: int
    touched_pages: int
    waking: int
