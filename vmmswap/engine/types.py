# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes into the engine, and what a successor learns of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path


class Job(enum.IntEnum):
    """A long job of the engine. The values are those of enum job_kind."""

    NONE = 0
    SWAP_OUT = 1
    SWAP_IN = 2
    TRIM = 3
    FLUSH = 4


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
class Tiers:
    """Pages are stored compressed, first on RAM: ram_max_bytes of it, 0 being RAM only on the way to disk.
    has_disk: what is too much or too old for RAM goes to disk, encrypted by a key that is nowhere else.
    ram_age_s 0: no page is too old.
    """

    ram_max_bytes: int
    ram_age_s: int = 600
    has_disk: bool = True
    compress: bool = True
    encrypt: bool = True


@dataclass(frozen=True, slots=True)
class TierFds:
    """What a successor needs of the tiers: the table of segments, the RAM tier, and with a disk tier its file
    and its key; -1: there is none.
    """

    segments: int = -1
    ram: int = -1
    disk: int = -1
    key: int = -1


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """swap_dir: where the store's unnamed file goes. fault_threads 0: one for each usable CPU, at most 16.
    spin_us: how long a fault thread looks for a further event before it sleeps. workers: threads of a long
    job. snapshot: guest memory is private and comes from a snapshot's memory file, which is the store.
    store_max_bytes: what the VM may occupy on the disk; store_keep_free_bytes: what it leaves free there;
    0: no limit. tiers None: pages are stored as they are, in a file. fault_around_pages: the largest window
    of neighbours that come back after a page fault, a power of two; 0: none do.
    """

    swap_dir: Path
    fault_threads: int = 0
    spin_us: int = 0
    workers: int = 3
    snapshot: bool = False
    store_max_bytes: int = 0
    store_keep_free_bytes: int = 0
    tiers: Tiers | None = None
    fault_around_pages: int = 0


@dataclass(frozen=True, slots=True)
class Mover:
    """A VMM that moves its private memory itself. pid -1: it has ended. pagemap: its /proc/self/pagemap."""

    pid: int
    mailbox: int
    pagemap: int


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
    idle_pages_max: int = 0  # leave so many of those that the guest touches all the time
    freeze_timeout_ms: int = 10000
    freeze_limit_ms: int = 0
    pins: PinOptions | None = PinOptions()


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a successor found: how many pages are out, and what the predecessor was doing when it died."""

    out_pages: int
    last_job: Job
