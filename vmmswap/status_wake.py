# SPDX-License-Identifier: GPL-2.0-or-later
"""What Status() says of the wake-ups of one VM: a part of the table in status.py."""

from __future__ import annotations

from dataclasses import dataclass

from vmmswap.status_key import Kind
from vmmswap.status_key import status_key as _key
from vmmswap.status_store import StoreStatus


@dataclass(frozen=True, slots=True)
class WakeStatus(StoreStatus):
    """Figures of the guest's page faults when it wakes up, and of what is brought back ahead of them."""

    wake_set_pages: int = _key(
        0,
        "WakeSetPages",
        unit="pages",
        engine="wake_set_pages",
        since="0.2",
        title="Wake set",
        shown_if_set=True,
        help=(
            "Pages that the guest is known to touch when it wakes up, and that `Wake` brings back. Learned "
            "at each swap-out, from the page faults since the one before: [wake-up.md](wake-up.md)."
        ),
    )
    idle_set_pages: int = _key(
        0,
        "IdleSetPages",
        unit="pages",
        engine="idle_set_pages",
        since="0.2",
        title="Touched while idle",
        shown_if_set=True,
        help=(
            "Pages that the last swap-out left resident, as the guest touches them even while it is idle: "
            "`IdleSetMax=`."
        ),
    )
    prefetched_pages: int = _key(
        0,
        "PrefetchedPages",
        unit="pages",
        kind=Kind.COUNTER,
        engine="prefetched_pages",
        since="0.2",
        title="Brought back ahead",
        shown_if_set=True,
        help=(
            "Pages that came back ahead of the guest's page faults: those of the wake set, and neighbours of "
            "page faults. Counts since the VM registered."
        ),
    )
    prefetch_wasted_pages: int = _key(
        0,
        "PrefetchWastedPages",
        unit="pages",
        kind=Kind.COUNTER,
        engine="wasted_pages",
        since="0.2",
        title="Of these in vain",
        shown_if_set=True,
        help=(
            "How many of PrefetchedPages the guest did not use, estimated from pages that were held back at "
            "random; those of the wake set at each swap-out. Counts since the VM registered."
        ),
    )
    wake_time_ms: int = _key(
        0,
        "WakeTimeMs",
        unit="ms",
        engine="wake_ms",
        since="0.2",
        title="Last wake-up",
        shown_if_set=True,
        help="From the first page fault of the last wake-up to its last one, or to now while it lasts.",
    )
    faults_per_second: int = _key(
        0,
        "FaultsPerSecond",
        unit="faults",
        engine="faults_per_second",
        since="0.2",
        title="Faults per second",
        shown_if_set=True,
        help="Page faults served in the last whole second.",
    )
