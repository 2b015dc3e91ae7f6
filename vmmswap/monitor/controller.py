# SPDX-License-Identifier: GPL-2.0-or-later
"""One VM's orders and what becomes of them: the machine's actions done with the engine, and the bus's view of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from vmmswap import message_ids
from vmmswap.config import Config
from vmmswap.engine import Job, JobDone, Mode
from vmmswap.errors import InternalError, NoSuchVMError, StorageFailedError, VmmswapError
from vmmswap.handoff.messages import PAGE_SIZE
from vmmswap.log import fields
from vmmswap.monitor import headroom
from vmmswap.monitor.machine import Action, Machine
from vmmswap.monitor.tracing import FILE_NAME, FileSink, JournalSink, Sink, Tracing, now
from vmmswap.monitor.vm import Vm
from vmmswap.status import State, Status
from vmmswap.trace_format import TraceHeader, TraceRegion

_log = logging.getLogger("vmmswap.controller")

_LOW_MEMORY_RETRY_S = 1.0
_FAILED_STOP_RETRY_S = 5.0
_FASTEST_SWAP_IN_BYTES_S = 4 << 30
_WATCH_S = (0.005, 0.5)  # shortest and longest time between two looks at free memory
_CHUNK_BYTES = 64 << 20  # what may still come in after a swap-in was told to stop


async def _no_check() -> None:
    """Before a VM is there."""


class Controller:
    """A VmControl. `vm` is None until a VMM has registered, and again when it is gone."""

    def __init__(self, name: str, config: Config, *, journal: bool, log_dir: Path) -> None:
        self.name = name
        self.config = config
        self.vm: Vm | None = None
        self.on_released: Callable[[str], None] = lambda _reason: None  # all is in: the VM can be let go
        self.check_before_enable: Callable[[], Awaitable[None]] = _no_check
        self._machine = Machine()
        self._mounts = headroom.find_mounts()
        self._journal = journal
        self._log_dir = log_dir
        self._tracing: Tracing | None = None
        self._listeners: list[Callable[[Status], None]] = []
        self._orders = 0
        self._since = 0.0
        self._release_reason = ""
        self._must_release = False  # nobody can be told that it failed: try again until it works
        self._low_memory = False  # a swap-in waits for memory
        self._timer: asyncio.TimerHandle | None = None

    # VmControl

    @property
    def owner_uid(self) -> int:
        return self.vm.manifest.uid if self.vm else 0

    def status(self) -> Status:
        machine = self._machine
        if self.vm is None:
            return Status(name=self.name)
        stats = self.vm.engine.stats()
        return Status(
            state=machine.state,
            swap_time_ms=stats.swap_time_ms,
            resident_pages=stats.resident_pages,
            copied_pages=stats.copied_pages,
            zeroed_pages=stats.zeroed_pages,
            redundant_pages=stats.redundant_pages,
            swap_pages=stats.swap_pages,
            name=self.name,
            operation=machine.operation,
            progress_pages=stats.progress_pages,
            total_pages=stats.total_pages,
            page_size=PAGE_SIZE,
            pause_us=stats.pause_us,
            fault_count=stats.fault_count,
            fault_p50_us=-(-stats.fault_p50_ns // 1000),
            fault_p99_us=-(-stats.fault_p99_ns // 1000),
            stored_bytes=stats.stored_ram_bytes + stats.stored_disk_bytes,
            stored_ram_bytes=stats.stored_ram_bytes,
            stored_disk_bytes=stats.stored_disk_bytes,
            written_bytes=stats.written_bytes,
            processes=stats.processes,
            restarts=self.vm.manifest.restarts,
            page_fault_logging=self._tracing is not None,
            error=machine.error,
            mode="" if stats.mode is Mode.NONE else stats.mode.name.lower(),
            pin_check=self.vm.engine.pin_check,
            pinned_pages=stats.pinned_pages,
            poisoned_pages=stats.poisoned_pages,
        )

    async def enable(self) -> None:
        vm = self._registered()
        self._orders += 1
        order = self._orders
        if self._machine.ending:
            self._machine.enable()  # says why not
        if self._machine.job is not Job.SWAP_OUT:
            await self.check_before_enable()
        if order == self._orders and self.vm is vm:  # no later order came while we looked
            self._low_memory = False
            self._perform(self._machine.enable())

    async def disable(self) -> None:
        vm = self._registered()
        self._orders += 1
        self._order_swap_in()
        if vm.engine.stats().poisoned_pages:
            await self._settled()
            self._refuse_poisoned()

    async def trim(self) -> None:
        self._registered()
        self._perform(self._machine.trim())

    def start_page_fault_logging(self) -> None:
        vm = self._registered()
        if self._tracing is None:
            base_ms, base_ns = now()
            regions = tuple(TraceRegion(item.addr, item.pages * PAGE_SIZE) for item in vm.manifest.regions)
            self._tracing = Tracing(vm.engine, self._sinks(TraceHeader(base_ms, regions)), base_ns)
            vm.change(logging=True)
            self._changed()

    def stop_page_fault_logging(self) -> None:
        if self._tracing is not None:
            self._tracing.stop()
            self._tracing = None
            if self.vm is not None:
                self.vm.change(logging=False)
            self._changed()

    async def exit(self) -> None:
        if self.vm is None:
            self.on_released("Exit was called")
            return
        poisoned = self.vm.engine.stats().poisoned_pages
        self.release("Exit was called", must=False)
        if poisoned:
            await self._settled()
            self._refuse_poisoned()

    def subscribe(self, listener: Callable[[Status], None]) -> None:
        self._listeners.append(listener)

    # The monitor's side

    @property
    def is_ending(self) -> bool:
        return self._machine.ending

    def adopt(self, vm: Vm, *, error: str = "") -> None:
        """Take a VM's orders from now on; error: why its state is Failed."""
        self.vm = vm
        stats = vm.engine.stats()
        self._machine = Machine()
        self._machine.job_done(error, stats.tracking)
        self._machine.wants_out = vm.manifest.wants_out
        self._changed()

    def resume(self, last_job: Job) -> None:
        """Finish what a predecessor was about, by the last order that it had."""
        if not self._machine.wants_out and self._machine.tracking:
            self._order_swap_in()
        elif self._machine.wants_out and last_job is Job.SWAP_OUT:
            self._perform(self._machine.enable())

    def release(self, reason: str, *, must: bool) -> None:
        """Swap all in, then call on_released. must: go on trying whatever happens; else a failure ends it."""
        self._must_release = self._must_release or must
        self._release_reason = self._release_reason or reason
        self._machine.ending = True
        self._order_swap_in()
        self._check_released()

    def drop(self) -> None:
        """The VM is gone: nothing is left to do for it."""
        self._cancel_timer()
        if self._tracing is not None:
            self._tracing.stop()
            self._tracing = None
        self.vm = None
        self._machine = Machine()
        self._changed()

    def job_done(self, event: JobDone) -> None:
        """The engine's job has ended."""
        if self.vm is None:
            return
        self._cancel_timer()
        job = self._machine.job
        tracking = self.vm.engine.stats().tracking
        reason = event.error.message if event.error else ""
        self._log_end(job, event)
        self._low_memory = self._low_memory and tracking
        if self._low_memory and not reason:
            reason = self._low_memory_text()
        action = self._machine.job_done(reason, tracking)
        self.vm.change(interrupted=0)
        self._perform(action)
        self._after_job(event)

    # Inside

    def _registered(self) -> Vm:
        if self.vm is None:
            raise NoSuchVMError(f"no VMM has handed its memory over to {self.name} yet")
        return self.vm

    def _order_swap_in(self) -> None:
        self._low_memory = False
        self._perform(self._machine.disable())

    def _perform(self, action: Action) -> None:
        """Do what the machine says. A job that cannot start has failed at once."""
        vm = self.vm
        if vm is None:
            return
        if vm.manifest.wants_out != self._machine.wants_out:
            vm.change(wants_out=self._machine.wants_out)
        while action not in (Action.NOTHING, Action.TURN):
            try:
                self._start(vm, action)
                break
            except VmmswapError as error:
                _log.error("%s cannot start: %s", action.value, error.message)
                action = self._machine.job_done(error.message, vm.engine.stats().tracking)
        if action is Action.TURN:
            vm.engine.cancel()
        self._changed()

    def _start(self, vm: Vm, action: Action) -> None:
        options = self.config.swap_out_options(promised_unpinned=not vm.manifest.pins)
        self._since = time.monotonic()
        match action:
            case Action.SWAP_OUT:
                vm.engine.start_swap_out(options)
            case Action.SWAP_IN:
                self._start_swap_in(vm)
            case Action.TRIM:
                vm.engine.start_trim(options)
            case _:
                raise InternalError(f"{action} is not a job")
        operation = self._machine.operation
        _log.info("%s begins", operation, extra=fields(operation, message_ids.OPERATION_STARTED))

    def _log_end(self, job: Job, event: JobDone) -> None:
        assert self.vm is not None  # noqa: S101  (looked at by the caller)
        stats = self.vm.engine.stats()
        took_ms = round((time.monotonic() - self._since) * 1000)
        operation = self._machine.operation
        counts = f"{stats.resident_pages} pages resident, {stats.swap_pages} in the store"
        more = {
            "duration_ms": took_ms,
            "resident_pages": stats.resident_pages,
            "swap_pages": stats.swap_pages,
            "pinned_pages": stats.pinned_pages,
            "pause_us": stats.pause_us,
        }
        if event.error is not None:
            _log.error(
                "%s failed after %d ms: %s (%s)",
                operation,
                took_ms,
                event.error.message,
                counts,
                extra=fields(operation, message_ids.OPERATION_FAILED, **more),
            )
            return
        how = "turned back" if event.cancelled else "done"
        pause = f", guest held for {stats.pause_us} us at most" if job is Job.SWAP_OUT else ""
        _log.info(
            "%s %s after %d ms: %s%s",
            operation,
            how,
            took_ms,
            counts,
            pause,
            extra=fields(operation, message_ids.OPERATION_FINISHED, **more),
        )

    def _after_job(self, event: JobDone) -> None:
        """What follows when nothing runs any more."""
        if self._machine.job is not Job.NONE:
            return
        if self._low_memory:
            self._schedule(_LOW_MEMORY_RETRY_S, self._try_again)
        elif event.error is not None and self._machine.ending:
            self._release_failed(event.error.message)
        self._check_released()

    def _release_failed(self, reason: str) -> None:
        if self._must_release:
            _log.error("the VM cannot be released: %s; it is served as before, and tried again", reason)
            self._schedule(_FAILED_STOP_RETRY_S, self._try_again)
        else:
            _log.error("Exit: the VM cannot be released: %s; the monitor goes on", reason)
            self._machine.ending = False
            self._release_reason = ""

    def _try_again(self) -> None:
        self._order_swap_in()

    def _check_released(self) -> None:
        machine = self._machine
        if machine.ending and machine.state is State.READY:
            self.on_released(self._release_reason)

    def _refuse_poisoned(self) -> None:
        if self.vm is not None and (poisoned := self.vm.engine.stats().poisoned_pages):
            raise StorageFailedError(
                f"{poisoned} pages of guest memory cannot be read back from the swap file; all others are in. While they"
                " remain the VM cannot be released: see the journal for the cause"
            )

    async def _settled(self) -> None:
        """Until no job runs."""
        done = asyncio.Event()

        def look(status: Status) -> None:
            if not status.operation:
                done.set()

        self._listeners.append(look)
        try:
            if self._machine.job is not Job.NONE:
                await done.wait()
        finally:
            self._listeners.remove(look)

    # Memory for a swap-in

    def _start_swap_in(self, vm: Vm) -> None:
        room = self._look_for_room(vm)
        if room.bytes <= 0:
            self._low_memory = True
            _log.warning("%s", self._low_memory_text(), extra=fields("swap-in", message_ids.LOW_MEMORY))
            self._schedule(_LOW_MEMORY_RETRY_S, self._try_again)
            raise StorageFailedError(self._low_memory_text())
        vm.engine.start_swap_in()
        self._watch_room(vm, room)

    def _look_for_room(self, vm: Vm) -> headroom.Headroom:
        pids = [process.pid for process in vm.processes.values() if process.pid]
        self._room = headroom.look(pids, self._mounts)
        return self._room

    def _low_memory_text(self) -> str:
        return (
            f"not enough memory to swap all in: {self._room.limit}; what is out is still served, and the swap-in goes on"
            " when there is more"
        )

    def _watch_room(self, vm: Vm, room: headroom.Headroom) -> None:
        """Look again before the fastest swap-in could have used half of what there is."""
        needed = vm.engine.stats().swap_pages * PAGE_SIZE
        if room.bytes > needed + _CHUNK_BYTES:
            delay_s = _WATCH_S[1]
        else:
            delay_s = min(_WATCH_S[1], max(_WATCH_S[0], room.bytes / 2 / _FASTEST_SWAP_IN_BYTES_S))
        self._schedule(delay_s, self._look_at_room)

    def _look_at_room(self) -> None:
        if self.vm is None or self._machine.job is not Job.SWAP_IN:
            return
        if self._machine.following is not Job.NONE:  # it is being turned back anyway
            return
        room = self._look_for_room(self.vm)
        if room.bytes > 0:
            self._watch_room(self.vm, room)
            return
        self._low_memory = True
        _log.warning("%s", self._low_memory_text(), extra=fields("swap-in", message_ids.LOW_MEMORY))
        self._perform(self._machine.hold())

    def _schedule(self, delay_s: float, what: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(delay_s, what)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Telling

    def _sinks(self, header: TraceHeader) -> Sequence[Sink]:
        kind = self.config.page_fault_log or ("journal" if self._journal else "file")
        sinks: list[Sink] = []
        if kind in ("file", "both"):
            sinks.append(FileSink(self._log_dir / FILE_NAME, header))
        if kind in ("journal", "both"):
            sinks.append(JournalSink(self.name, header))
        return sinks

    def _changed(self) -> None:
        status = self.status()
        for listener in list(self._listeners):
            listener(status)
