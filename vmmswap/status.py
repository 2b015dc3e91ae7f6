# SPDX-License-Identifier: GPL-2.0-or-later
"""What Status() says of one VM: the one table of its keys, their D-Bus types, and which are signalled."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, fields
from typing import Any


class State(enum.StrEnum):
    """Where a VM's memory is."""

    READY = "Ready"
    IN_PROGRESS = "InProgress"
    ACTIVE = "Active"
    FAILED = "Failed"


class Operation(enum.StrEnum):
    """What is being done with a VM's memory right now."""

    NONE = ""
    SWAP_OUT = "swap-out"
    SWAP_IN = "swap-in"
    TRIM = "trim"


def _key(name: str, signature: str = "t", *, signalled: bool = False) -> dict[str, Any]:
    return {"key": name, "signature": signature, "signalled": signalled}


@dataclass(frozen=True, slots=True)
class Status:
    """One VM's status. Each field's metadata holds its D-Bus key and signature; `signalled` fields raise
    PropertiesChanged, the others carry EmitsChangedSignal=false so that proxies do not cache them.

    Page counts are in pages of page_size bytes. The counters copied_pages, zeroed_pages and redundant_pages
    restart at each swap-out, as crosvm's do; fault_count and its percentiles restart when the monitor does;
    written_bytes and restarts count since the VM registered.
    """

    state: State = field(default=State.READY, metadata=_key("State", "s", signalled=True))
    swap_time_ms: int = field(default=0, metadata=_key("SwapTimeMs"))
    resident_pages: int = field(default=0, metadata=_key("ResidentPages"))
    copied_pages: int = field(default=0, metadata=_key("CopiedPages"))
    zeroed_pages: int = field(default=0, metadata=_key("ZeroedPages"))
    redundant_pages: int = field(default=0, metadata=_key("RedundantPages"))
    swap_pages: int = field(default=0, metadata=_key("SwapPages"))
    name: str = field(default="", metadata=_key("Name", "s"))
    operation: Operation = field(default=Operation.NONE, metadata=_key("Operation", "s", signalled=True))
    progress_pages: int = field(default=0, metadata=_key("ProgressPages"))
    total_pages: int = field(default=0, metadata=_key("TotalPages"))
    page_size: int = field(default=4096, metadata=_key("PageSize"))
    pause_us: int = field(default=0, metadata=_key("PauseUs"))
    fault_count: int = field(default=0, metadata=_key("FaultCount"))
    fault_p50_us: int = field(default=0, metadata=_key("FaultP50Us"))
    fault_p99_us: int = field(default=0, metadata=_key("FaultP99Us"))
    stored_bytes: int = field(default=0, metadata=_key("StoredBytes"))
    stored_ram_bytes: int = field(default=0, metadata=_key("StoredRamBytes"))
    stored_disk_bytes: int = field(default=0, metadata=_key("StoredDiskBytes"))
    written_bytes: int = field(default=0, metadata=_key("WrittenBytes"))
    processes: int = field(default=0, metadata=_key("Processes", "u"))
    restarts: int = field(default=0, metadata=_key("Restarts", "u"))
    page_fault_logging: bool = field(default=False, metadata=_key("PageFaultLogging", "b"))
    error: str = field(default="", metadata=_key("Error", "s"))
    mode: str = field(
        default="", metadata=_key("Mode", "s")
    )  # live or freeze: how the last swap-out was done
    pin_check: str = field(default="", metadata=_key("PinCheck", "s"))  # which way pins are seen
    pinned_pages: int = field(default=0, metadata=_key("PinnedPages"))  # left resident by the last swap-out
    poisoned_pages: int = field(default=0, metadata=_key("PoisonedPages"))
    kept_pages: int = field(default=0, metadata=_key("KeptPages"))  # resident, and their copy still good


@dataclass(frozen=True, slots=True)
class StatusKey:
    """One row of the table: the attribute of Status, its key on the bus, its D-Bus type."""

    attribute: str
    key: str
    signature: str
    signalled: bool


KEYS: tuple[StatusKey, ...] = tuple(
    StatusKey(item.name, item.metadata["key"], item.metadata["signature"], item.metadata["signalled"])
    for item in fields(Status)
)
