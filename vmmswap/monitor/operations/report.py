# SPDX-License-Identifier: GPL-2.0-or-later
"""What is reported of a VM: its Status, and the start and end of each operation in the journal."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from vmmswap import message_ids
from vmmswap.engine import EngineStats, JobDone, Mode
from vmmswap.errors import PagesLostError, VmmswapError
from vmmswap.file_system import ON_RAM
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.log import dropped, fields
from vmmswap.monitor.operations.machine import Machine
from vmmswap.monitor.operations.net_freed import net_freed_bytes
from vmmswap.monitor.vm import Vm
from vmmswap.status import KEYS, Operation, State, Status

_log = logging.getLogger("vmmswap.operation")

_WEAK_PIN_CHECKS = {
    "promise": "the VMM promises that there are none",
    "settle": "the swap-out only waits for I/O to end",
    "none": "PinCheck=off",
}


_LIMITS = ("", "ram-tier", "disk-tier", "write-budget", "no-space")  # enum limited_by


def status_of(
    machine: Machine, vm: Vm, *, logging: bool, queued: bool = False, drain_pause_us: int = 0
) -> Status:
    """The VM's status now. drain_pause_us: how long the guest was held by QMP."""
    stats = vm.stats()
    state, error = machine.state, machine.error
    if stats.lost_pages and state is not State.IN_PROGRESS:
        state, error = State.FAILED, error or _lost(stats.lost_pages)
    return Status(
        **{row.attribute: getattr(stats, row.engine) for row in KEYS if row.engine},
        state=state,
        name=vm.manifest.name,
        pid=vm.vmm.pid,
        owner_uid=vm.manifest.uid,
        origin=_origin(vm),
        operation=machine.operation,
        queued=queued,
        page_size=PAGE_SIZE,
        pause_us=max(stats.pause_us, drain_pause_us),
        fault_p50_us=_to_us(stats.fault_p50_ns),
        fault_p99_us=_to_us(stats.fault_p99_ns),
        stored_bytes=stats.stored_ram_bytes + stats.stored_disk_bytes,
        net_freed_bytes=net_freed_bytes(vm, stats),
        limited_by=limit_of(stats),
        restarts=vm.manifest.restarts,
        page_fault_logging=logging,
        error="" if error is None else error.message,
        error_name="" if error is None else error.dbus_name,
        mode="" if stats.mode is Mode.NONE else stats.mode.name.lower(),
        pin_check=vm.engine.pin_check,
        dropped_messages=dropped(),
    )


def stored_on(status: Status, file_system: str) -> Status:
    """The status of a VM whose swap file is there: what the engine takes for a disk may be RAM."""
    status = replace(status, swap_file_system=file_system)
    if file_system not in ON_RAM:
        return status
    return replace(
        status,
        stored_ram_bytes=status.stored_bytes,
        stored_disk_bytes=0,
        written_bytes=0,
        written_today_bytes=0,
    )


def starved(status: Status, error: VmmswapError | None) -> Status:
    """The status of a guest whose page faults wait for memory, with the reason; None: they do not."""
    if error is None or status.state is State.IN_PROGRESS:
        return status
    return replace(status, state=State.FAILED, error=error.message, error_name=error.dbus_name)


def limit_of(stats: EngineStats) -> str:
    """LimitedBy."""
    return _LIMITS[stats.limited_by]


def _stored(stats: EngineStats) -> str:
    mib = 1 << 20
    return (
        f"{stats.stored_ram_bytes / mib:.1f} MiB on RAM, {stats.stored_disk_bytes / mib:.1f} MiB on disk,"
        f" {stats.written_bytes / mib:.1f} MiB written to disk"
    )


def _lost(pages: int) -> PagesLostError:
    return PagesLostError(
        f"{pages} pages of guest memory are lost: something other than the monitor filled their place while"
        " they were out; the journal says which. Restart the VM"
    )


def _origin(vm: Vm) -> str:
    return vm.backing.origin or ("attach" if vm.manifest.attached else "hand-off")


def _to_us(time_ns: int) -> int:
    """Rounded up, so that 0 means that there was none."""
    return -(-time_ns // 1000)


class OperationLog:
    """One entry when an operation begins, one when it ends."""

    def __init__(self) -> None:
        self._since_s = 0.0
        self._told_pin_check = ""

    def started(self, operation: Operation) -> None:
        self._since_s = time.monotonic()
        _log.info("%s begins", operation, extra=fields(operation, message_ids.OPERATION_STARTED))

    def queued(self) -> None:
        _log.info("swap-out waits: as many as SwapOutsMax= run on the host", extra=fields(Operation.SWAP_OUT))

    def ended(self, operation: Operation, stats: EngineStats, pin_check: str, event: JobDone) -> None:
        took_ms = round((time.monotonic() - self._since_s) * 1000)
        counts = f"{stats.resident_pages} pages resident, {stats.swap_pages} in the store"
        if operation is Operation.SWAP_OUT:
            if stats.left_pages:
                counts += f", {stats.left_pages} left behind"
            counts += f", {stats.pinned_pages} pinned, longest pause {stats.pause_us} us"
        more: dict[str, str | int] = {
            "duration_ms": took_ms,
            "resident_pages": stats.resident_pages,
            "swap_pages": stats.swap_pages,
            "pinned_pages": stats.pinned_pages,
            "left_pages": stats.left_pages,
            "pause_us": stats.pause_us,
        }
        if event.limit:
            more["limited_by"] = limit_of(stats)
        self._say_weak_pin_check(pin_check)
        if event.error is None:
            how, level, message_id = "done", logging.INFO, message_ids.OPERATION_FINISHED
            if event.cancelled:
                how = "cancelled"
            elif event.limit:
                how, level, message_id = "stopped at a limit", logging.WARNING, message_ids.OPERATION_LIMITED
                counts = f"{event.limit} ({limit_of(stats)}: {counts}; {_stored(stats)})"
        else:
            how, level, message_id = "failed", logging.ERROR, message_ids.OPERATION_FAILED
            counts = f"{event.error.message} ({counts})"
        extra = fields(operation, message_id, **more)
        _log.log(level, "%s %s after %d ms: %s", operation, how, took_ms, counts, extra=extra)

    def _say_weak_pin_check(self, pin_check: str) -> None:
        """Once for each way that is weaker than looking."""
        if pin_check in _WEAK_PIN_CHECKS and pin_check != self._told_pin_check:
            self._told_pin_check = pin_check
            _log.warning(
                "nothing looks for pages held for I/O: %s (pin check: %s)",
                _WEAK_PIN_CHECKS[pin_check],
                pin_check,
                extra=fields(Operation.SWAP_OUT, message_ids.WEAKER_PIN_CHECK),
            )
