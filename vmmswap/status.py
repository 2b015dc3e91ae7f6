# SPDX-License-Identifier: GPL-2.0-or-later
"""What Status() says of one VM: the one table of its keys.

A key is added here (of the store: status_store.py, of wake-ups: status_wake.py), and counted elsewhere.
D-Bus, docs/dbus.md and vmmswapctl follow: `make generate`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, fields

from vmmswap import __version__
from vmmswap.status_key import Kind, StatusKey
from vmmswap.status_key import status_key as _key
from vmmswap.status_wake import WakeStatus


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
    FLUSH = "flush"


@dataclass(frozen=True, slots=True)
class Status(WakeStatus):
    """One VM's status: each field's metadata holds the other columns of its StatusKey."""

    state: State = _key(
        State.READY,
        "State",
        "s",
        signalled=True,
        help=(
            "`Ready`: all memory is where it belongs. `InProgress`: an operation runs. `Active`: memory was"
            " swapped out, and page faults bring back what is out (SwapPages); the VM stays Active until"
            " Disable, even when all has come back. `Failed`: the last operation failed, and Error says why;"
            " page faults are still served, and Enable or Disable may be tried again."
        ),
    )
    swap_time_ms: int = _key(
        0,
        "SwapTimeMs",
        unit="ms",
        engine="swap_time_ms",
        help="How long the last swap-out or swap-in took, whichever was later.",
    )
    resident_pages: int = _key(
        0,
        "ResidentPages",
        unit="pages",
        engine="resident_pages",
        title="Resident",
        help=(
            "Pages of guest memory on RAM now, as the kernel counts them. For a VM from Firecracker's"
            " snapshot this includes memory that the VMM has taken for itself since:"
            " [handoff.md](handoff.md#firecracker)."
        ),
    )
    copied_pages: int = _key(
        0,
        "CopiedPages",
        unit="pages",
        kind=Kind.COUNTER,
        engine="copied_pages",
        title="Came back since swap-out",
        help="Pages copied from the store because of page faults. Restarts at each swap-out.",
    )
    zeroed_pages: int = _key(
        0,
        "ZeroedPages",
        unit="pages",
        kind=Kind.COUNTER,
        engine="zeroed_pages",
        title="Came back as zeros",
        help="Page faults answered with a page of zeros. Restarts at each swap-out.",
    )
    redundant_pages: int = _key(
        0,
        "RedundantPages",
        unit="faults",
        kind=Kind.COUNTER,
        engine="redundant_pages",
        title="Redundant faults",
        help=(
            "Page faults on pages that were already there, because two processes wanted the same page."
            " Restarts at each swap-out."
        ),
    )
    swap_pages: int = _key(
        0,
        "SwapPages",
        unit="pages",
        engine="swap_pages",
        title="Swapped out",
        help="Pages that the store holds.",
    )
    name: str = _key(
        "",
        "Name",
        "s",
        help="The VM's name.",
    )
    pid: int = _key(
        0,
        "Pid",
        "u",
        since="0.2",
        title="PID",
        shown_if_set=True,
        help="The VMM's process id; 0 while there is no VMM.",
    )
    owner_uid: int = _key(
        0,
        "OwnerUid",
        "u",
        title="Owner's uid",
        help=(
            "The uid of the user who owns this VM and may change it: the user in `Owner=` of the"
            " configuration, else the user for whom its socket was prepared, else the user who handed it"
            " over."
        ),
    )
    origin: str = _key(
        "",
        "Origin",
        "s",
        since="0.2",
        title="Origin",
        shown_if_set=True,
        help=(
            "How the VM came here: `hand-off` (the VMM passed its memory over the socket), `attach`"
            " (vmmswap took over a running VMM) or `snapshot` (Firecracker's hand-off). Empty while there is"
            " no VMM."
        ),
    )
    operation: Operation = _key(
        Operation.NONE,
        "Operation",
        "s",
        signalled=True,
        help="`swap-out`, `swap-in`, `trim`, `flush`, or empty.",
    )
    queued: bool = _key(
        False,
        "Queued",
        "b",
        since="0.2",
        title="Queued",
        shown_if_set=True,
        help=(
            "True while a swap-out waits because as many as `SwapOutsMax=` run on this host. Nothing of it"
            " has begun, and Disable cancels it."
        ),
    )
    progress_pages: int = _key(
        0,
        "ProgressPages",
        unit="pages",
        engine="progress_pages",
        help="Pages that the running operation has handled.",
    )
    total_pages: int = _key(
        0,
        "TotalPages",
        unit="pages",
        engine="total_pages",
        help="Pages of guest memory.",
    )
    page_size: int = _key(
        4096,
        "PageSize",
        unit="bytes",
        help="Bytes in a page. All page counts here use it.",
    )
    pause_us: int = _key(
        0,
        "PauseUs",
        unit="us",
        help=(
            "The longest time for which the last swap-out stopped the guest, to drain its I/O by QMP"
            " included. Restarts at each swap-out."
        ),
    )
    fault_count: int = _key(
        0,
        "FaultCount",
        unit="faults",
        kind=Kind.COUNTER,
        engine="fault_count",
        help="Page faults served. Restarts with the monitor.",
    )
    fault_p50_us: int = _key(
        0,
        "FaultP50Us",
        unit="us",
        help="Median time from a page fault to its answer. Restarts with the monitor.",
    )
    fault_p99_us: int = _key(
        0,
        "FaultP99Us",
        unit="us",
        help="99 of 100 page faults were answered within this time. Restarts with the monitor.",
    )
    processes: int = _key(
        0,
        "Processes",
        "u",
        engine="processes",
        title="Processes",
        help="Tracked processes of the VM that map its memory.",
    )
    restarts: int = _key(
        0,
        "Restarts",
        "u",
        kind=Kind.COUNTER,
        title="Monitor restarts",
        help="How often the monitor has restarted since the VM registered.",
    )
    page_fault_logging: bool = _key(
        False,
        "PageFaultLogging",
        "b",
        title="Fault logging",
        help="True while page faults are logged.",
    )
    error: str = _key(
        "",
        "Error",
        "s",
        title="Error",
        shown_if_set=True,
        help="Why State is `Failed`, and what to do; otherwise empty.",
    )
    mode: str = _key(
        "",
        "Mode",
        "s",
        help=(
            "How the last swap-out was done: `live` while the guest ran, or `freeze` with the guest stopped."
        ),
    )
    pin_check: str = _key(
        "",
        "PinCheck",
        "s",
        title="Pin check",
        shown_if_set=True,
        help=(
            "How the last swap-out found pages that somebody else holds: `bpf`, `collapse`, `qmp`,"
            " `promise`, `settle` or `none`; [pins.md](pins.md) explains them."
        ),
    )
    pinned_pages: int = _key(
        0,
        "PinnedPages",
        unit="pages",
        engine="pinned_pages",
        title="Pinned",
        shown_if_set=True,
        help="Pages that the last swap-out left on RAM because somebody else held them.",
    )
    left_pages: int = _key(
        0,
        "LeftPages",
        unit="pages",
        since="0.2",
        engine="left_pages",
        title="Left behind",
        shown_if_set=True,
        help=(
            "Pages that the last swap-out left on RAM because they could not be read, stored or punched out "
            "of the memory's file. The journal has one entry with the reason and the ranges."
        ),
    )
    error_name: str = _key(
        "",
        "ErrorName",
        "s",
        since="0.2",
        title="Error name",
        shown_if_set=True,
        help="The D-Bus name of Error, such as `org.vmmswap.Error.NoSpace`; empty if there is no error.",
    )
    dropped_messages: int = _key(
        0,
        "DroppedMessages",
        kind=Kind.COUNTER,
        since="0.2",
        title="Log messages dropped",
        shown_if_set=True,
        help="Log messages that were dropped because nobody took them. Restarts with the monitor.",
    )
    version: str = _key(
        __version__,
        "Version",
        "s",
        since="0.2",
        title="Monitor's version",
        help=(
            "The version of vmmswap that the monitor runs. An upgrade does not change a running monitor;"
            " `systemctl restart vmmswap@NAME.service` does, and leaves memory out."
        ),
    )


def _keys() -> Iterator[StatusKey]:
    """What the VM is and does first, and then the figures of its parts, which dataclasses put first."""
    of_parts = {item.name for item in fields(WakeStatus)}
    for item in sorted(fields(Status), key=lambda item: item.name in of_parts):
        yield StatusKey(item.name, **item.metadata)


KEYS: tuple[StatusKey, ...] = tuple(_keys())
