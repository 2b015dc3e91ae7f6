# SPDX-License-Identifier: GPL-2.0-or-later
"""What Status() says of the store of one VM: a part of the table in status.py."""

from __future__ import annotations

from dataclasses import dataclass

from vmmswap.status_key import Kind
from vmmswap.status_key import status_key as _key


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """Figures of the store, and of the pages that are in it."""

    stored_bytes: int = _key(
        0,
        "StoredBytes",
        unit="bytes",
        help="Space that the store takes, on RAM and disk.",
    )
    stored_ram_bytes: int = _key(
        0,
        "StoredRamBytes",
        unit="bytes",
        engine="stored_ram_bytes",
        title="Stored on RAM",
        help="The part on RAM.",
    )
    stored_disk_bytes: int = _key(
        0,
        "StoredDiskBytes",
        unit="bytes",
        engine="stored_disk_bytes",
        title="Stored on disk",
        help="The part on disk.",
    )
    written_bytes: int = _key(
        0,
        "WrittenBytes",
        unit="bytes",
        kind=Kind.COUNTER,
        engine="written_bytes",
        title="Written to disk",
        help="Bytes written to disk since the VM registered.",
    )
    written_today_bytes: int = _key(
        0,
        "WrittenTodayBytes",
        unit="bytes",
        since="0.2",
        title="Written today",
        shown_if_set=True,
        help=(
            "Bytes written to disk for the VM of this name in the last 24 hours, counted by whole hours: what"
            " WriteBudgetPerDay= limits. The ledger keeps them over restarts, reboots and the VM's end."
        ),
    )
    stored_pages: int = _key(
        0,
        "StoredPages",
        unit="pages",
        engine="used_slots",
        since="0.2",
        title="In the store",
        shown_if_set=True,
        help=(
            "Pages that the store has, as they went in: those that are out (SwapPages) and copies of pages"
            " that came back unchanged (KeptPages)."
        ),
    )
    same_filled_pages: int = _key(
        0,
        "SameFilledPages",
        unit="pages",
        engine="same_filled_pages",
        since="0.2",
        title="Stored as one word",
        shown_if_set=True,
        help="Pages in the store that repeat one 8-byte word and take no space.",
    )
    raw_pages: int = _key(
        0,
        "RawPages",
        unit="pages",
        engine="raw_pages",
        since="0.2",
        title="Stored uncompressed",
        shown_if_set=True,
        help="Pages in the store's tiers that do not compress and are stored as they are.",
    )
    compressed_bytes: int = _key(
        0,
        "CompressedBytes",
        unit="bytes",
        engine="record_bytes",
        since="0.2",
        title="Compressed to",
        shown_if_set=True,
        help=(
            "Space that the pages in the store's tiers take, on RAM and disk, without slack. StoredPages *"
            " PageSize is what they took before; with the two, `vmmswapctl status` shows the ratio."
        ),
    )
    net_freed_bytes: int = _key(
        0,
        "NetFreedBytes",
        unit="bytes",
        since="0.2",
        title="Freed in net",
        shown_if_set=True,
        help=(
            "Memory that the host has got back, by the kernel's figures: how much less of the guest is"
            " resident than when its first page went out, without what the RAM tier, the tables and the"
            " monitor's own growth take: [store.md](store.md#what-the-host-gets-back). 0 while nothing is"
            " out."
        ),
    )
    limited_by: str = _key(
        "",
        "LimitedBy",
        "s",
        since="0.2",
        title="Limited by",
        shown_if_set=True,
        help=(
            "Which limit stopped the last swap-out: `ram-tier` (RamTierMax=), `disk-tier` (DiskTierMax=), "
            "`write-budget`, `no-space` (on the file system, by DiskKeepFree= or a quota, or of memory for "
            "the RAM tier), or none. What is out by then stays out, the rest stays resident, and State is "
            "`Active`. Empty again from the next swap-out or swap-in on."
        ),
    )
    poisoned_pages: int = _key(
        0,
        "PoisonedPages",
        unit="pages",
        engine="poisoned_pages",
        title="Poisoned",
        shown_if_set=True,
        help=(
            "Pages whose stored bytes cannot be read. The guest gets a memory error there, never wrong bytes."
        ),
    )
    kept_pages: int = _key(
        0,
        "KeptPages",
        unit="pages",
        engine="kept_pages",
        title="Kept",
        shown_if_set=True,
        help=(
            "Pages that came back, are on RAM, and have not been written to since. Their copies in the"
            " store are still good, so they can leave again without a write to disk. SwapPages does not"
            " count them; StoredBytes includes their copies."
        ),
    )
    lost_pages: int = _key(
        0,
        "LostPages",
        unit="pages",
        kind=Kind.COUNTER,
        since="0.2",
        engine="lost_pages",
        title="Lost",
        shown_if_set=True,
        help=(
            "Pages that were out when something other than the monitor filled their place. The guest reads"
            " what was put there, zeros as a rule. One access can lose 512 pages:"
            " [attach.md](attach.md#what-one-access-from-outside-costs). State is `Failed` from then until"
            " the VM ends, whatever is ordered. Counts since the VM registered."
        ),
    )
    swap_file_system: str = _key(
        "",
        "SwapFileSystem",
        "s",
        since="0.2",
        title="Swap file on",
        shown_if_set=True,
        help=(
            "The type of the file system that holds the swap file: `ext4`, `xfs`, ... On `tmpfs` no memory"
            " is gained: what is stored there is on RAM, and StoredRamBytes counts it."
        ),
    )
