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
        help="What the store occupies, on RAM and disk.",
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
    same_filled_pages: int = _key(
        0,
        "SameFilledPages",
        unit="pages",
        engine="same_filled_pages",
        since="0.2",
        title="Stored as one word",
        shown_if_set=True,
        help="Pages in the store that repeat one word of 8 bytes, and take no room. Only with RamTierMax=.",
    )
    raw_pages: int = _key(
        0,
        "RawPages",
        unit="pages",
        engine="raw_pages",
        since="0.2",
        title="Stored uncompressed",
        shown_if_set=True,
        help="Pages in the store's tiers that do not compress, and are kept as they are.",
    )
    compressed_bytes: int = _key(
        0,
        "CompressedBytes",
        unit="bytes",
        engine="record_bytes",
        since="0.2",
        title="Compressed to",
        shown_if_set=True,
        help="What all pages in the store's tiers take there, on RAM and disk, without slack.",
    )
    limited_by: str = _key(
        "",
        "LimitedBy",
        "s",
        since="0.2",
        title="Limited by",
        shown_if_set=True,
        help="What stopped a swap-out: `ram-tier`, `disk-tier`, `write-budget`, `no-space`, or nothing.",
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
            "Pages that came back, are on RAM, and have not been written to since: the copy in "
            "the store is still good, and they can leave again without being written to disk. Not "
            "counted in SwapPages; their copies are part of StoredBytes."
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
            "Pages whose place something other than the monitor filled while they were out: the guest reads "
            "what that put there, zeros as a rule. One access can lose 512 pages: "
            "[attach.md](attach.md#what-one-access-from-outside-costs). State is `Failed` from then on, "
            "whatever is ordered, until the VM ends. Counts since the VM registered."
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
            "The kind of file system that the swap file is on: `ext4`, `xfs`, ... On `tmpfs` nothing is "
            "gained: what is stored there is on RAM, and counted in StoredRamBytes."
        ),
    )
