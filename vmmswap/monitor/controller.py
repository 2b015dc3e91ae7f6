# SPDX-License-Identifier: GPL-2.0-or-later
"""One VM's orders and what becomes of them: the machine's actions done with the engine."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from vmmswap import message_ids
from vmmswap.config import Config
from vmmswap.engine import Engine, Job, JobDone, Mode
from vmmswap.errors import (
    InternalError,
    NoSpaceError,
    NoSuchVMError,
    NotSupportedError,
    StorageFailedError,
    VmmswapError,
)
from vmmswap.log import fields
from vmmswap.monitor.counting import Counting
from vmmswap.monitor.coverage import is_gone
from vmmswap.monitor.drain import Drain
from vmmswap.monitor.guard import guarded, log_failure
from vmmswap.monitor.headroom import RoomWatch
from vmmswap.monitor.housekeeping import Housekeeping
from vmmswap.monitor.machine import Action, Machine
from vmmswap.monitor.report import OperationLog, starved, status_of
from vmmswap.monitor.starvation import Starvation
from vmmswap.monitor.tracing import PageFaultLog, sink_kinds
from vmmswap.monitor.vm import Vm
from vmmswap.status import State, Status

_log = logging.getLogger("vmmswap.controller")

_LOW_MEMORY_RETRY_S = 1.0
_FAILED_STOP_RETRY_S = 5.0
_NOT_RECORDED = "a successor would not know the last order"


async def _no_check() -> None:
    """Before a VM is there."""


class Controller:
    """A VmControl. `vm` is None until a VMM has registered, and again when it is gone.

    on_released(reason) is called when the VM can be let go after release(): all is in, or there is none.
    check_before_enable raises if memory must not leave, check_before_exit if the VM cannot be let go now.
    """

    def __init__(self, name: str, config: Config, *, journal: bool, log_dir: Path) -> None:
        self.name = name
        self.config = config
        self.vm: Vm | None = None
        self.on_released: Callable[[str], None] = lambda _reason: None
        self.check_before_enable: Callable[[], Awaitable[None]] = _no_check
        self.check_before_exit: Callable[[], None] = lambda: None
        self._machine = Machine()
        self.page_fault_log = PageFaultLog(sink_kinds(config.page_fault_log, journal=journal), log_dir)
        self._listeners: list[Callable[[Status], None]] = []
        self._orders = 0  # to notice that a later one came
        self._operation_log = OperationLog()
        self._release_reason = ""
        self._must_release = False  # nobody can be told that it failed: try until it works
        self._is_short_of_memory = False  # a swap-in waits for memory
        self._spoiled: VmmswapError | None = None  # why all is brought back without an order
        self._room = RoomWatch(self._pids, self._out_pages, self._grant_pages, self._memory_is_short)
        self._retry: asyncio.TimerHandle | None = None
        self._drain = Drain(self._drained, self._drain_failed, self._drain_idle)
        self._drain_error = ""
        self._starvation: Starvation | None = None
        self._housekeeping = Housekeeping(self._idle_engine)
        self._counting = Counting()
        self._resuming: asyncio.Task[None] | None = None

    # VmControl

    @property
    def owner_uid(self) -> int:
        return self.vm.manifest.uid if self.vm else 0

    def status(self) -> Status:
        status = status_of(
            self.name,
            self._machine,
            self.vm,
            logging=self.page_fault_log.is_on,
            drain_pause_us=self._drain.pause_us,
        )
        return starved(status, self._starvation.error if self._starvation else None)

    async def refresh(self) -> None:
        if self.vm is not None:
            await self._counting.refresh(self.vm.engine)

    async def enable(self) -> None:
        vm = self._registered()
        vm.check_may_go_out()
        self._orders += 1
        order = self._orders
        self._machine.check_enable()
        if self._machine.job is not Job.SWAP_OUT:
            await self._look_before_swap_out(vm)
        if order == self._orders:
            self._spoiled = None
            self._is_short_of_memory = False
            self._perform(self._machine.enable())
        elif self._machine.job is Job.NONE:
            self._drain.finish()

    async def disable(self) -> None:
        self._registered()
        self._spoiled = None
        self._orders += 1
        poisoned = self._poisoned_pages()
        self._order_swap_in()
        if poisoned:
            await self._settled()
            self._refuse_poisoned()

    async def trim(self) -> None:
        vm = self._registered()
        vm.check_may_go_out()
        if self._machine.job is Job.NONE:
            await self._drain.prepare(vm, self.config)
        if self.vm is vm:
            self._perform(self._machine.trim())

    async def start_page_fault_logging(self) -> None:
        vm = self._registered()
        await self.page_fault_log.start(vm, self.config.disk_keep_free)
        if self.vm is vm and not vm.manifest.logging:
            vm.change(logging=True)
            self._changed()

    async def stop_page_fault_logging(self) -> None:
        vm = self.vm
        if vm is None or not self.page_fault_log.is_on:
            return
        await self.page_fault_log.finish()
        if self.vm is vm:
            vm.change(logging=False)
            self._changed()

    async def exit(self) -> None:
        self.check_before_exit()
        self._orders += 1
        poisoned = self._poisoned_pages()
        self.release("Exit was called", must=False)
        if poisoned:
            await self._settled()
            self._refuse_poisoned()
        if self._is_short_of_memory:
            raise NoSpaceError(self._room.message)

    def subscribe(self, listener: Callable[[Status], None]) -> None:
        self._listeners.append(listener)

    # The monitor's side

    def adopt(self, vm: Vm, *, error: VmmswapError | None = None) -> None:
        """Take a VM's orders from now on; error: why its state is Failed."""
        self.vm = vm
        self._machine = Machine()
        self._machine.job_done(error, vm.engine.stats().tracking)
        self._machine.wants_out = vm.manifest.wants_out
        self._drain.adopt(vm)
        self._starvation = Starvation(vm, self._pids, self._changed)
        self._housekeeping.start()
        self._changed()

    def resume(self, last_job: Job) -> None:
        """Go on with what a predecessor was about, by the last order that it had."""
        if not self._machine.wants_out and self._machine.tracking:
            self._order_swap_in()
        elif self._machine.wants_out and last_job is Job.SWAP_OUT:
            self._go_on_out()

    def release(self, reason: str, *, must: bool) -> None:
        """Swap all in, then call on_released. must: try until it works; else a failure calls it off."""
        self._must_release = self._must_release or must
        self._release_reason = self._release_reason or reason
        self._machine.ending = True
        self._order_swap_in()

    def bring_back(self, why: VmmswapError, message_id: str = message_ids.LATE_MAPPER) -> None:
        """Somebody spoils what is out for as long as any is: all in, and State is Failed with the reason."""
        if self.vm is None or str(self._spoiled) == str(why):
            return
        _log.error("%s: all memory is brought back now", why, extra=fields("", message_id))
        self._orders += 1
        self._order_swap_in()
        self._spoiled = why

    def drop(self) -> None:
        """The VM is gone: nothing more is done for it."""
        self._room.stop()
        if self._starvation is not None:
            self._starvation.stop()
            self._starvation = None
        self._housekeeping.stop()
        self._cancel_retry()
        with guarded("the drain by QMP is not given up"):
            self._drain.drop()
        self.page_fault_log.stop()
        self.vm = None
        self.check_before_exit = lambda: None
        self._machine = Machine()
        self._changed()

    def job_done(self, event: JobDone) -> None:
        """The engine's job has ended. If this raises, it was not taken note of, and may be told again."""
        vm = self.vm
        if vm is None:
            return
        stats = vm.stats()
        stats = replace(stats, pause_us=max(stats.pause_us, self._drain.pause_us))
        self._room.stop()
        self._drain.job_ended()
        event = self._with_full_file_system(self._with_drain_error(event))
        with guarded("the end of the operation is not in the log"):
            self._operation_log.ended(self._machine.operation, stats, vm.engine.pin_check, event)
        with guarded(_NOT_RECORDED):
            vm.change(interrupted=0)
        self._is_short_of_memory = self._is_short_of_memory and stats.tracking
        error = event.error
        if self._is_short_of_memory:
            error = error or NoSpaceError(self._room.message)
        if event.job is Job.SWAP_IN:
            error = error or self._spoiled
        self._perform(self._machine.job_done(error, stats.tracking))

    @property
    def is_busy(self) -> bool:
        """An operation runs."""
        return self._machine.job is not Job.NONE

    def starved(self, page_idx: int) -> None:
        """A page fault waits for memory."""
        if self._starvation is not None:
            self._starvation.found(page_idx)

    def pages_lost(self) -> None:
        """State says so from now on."""
        self._changed()

    def protected(self) -> None:
        """The engine's job waits until the VMM's I/O has ended."""
        if self.vm is None or self._machine.job is Job.NONE:
            return
        if self.vm.engine.stats().mode is Mode.FREEZE and self._machine.job is Job.SWAP_OUT:
            self._drain_failed(
                "the VMM is frozen, because its userfaultfd or this kernel cannot write-protect, and cannot"
                " be drained by QMP: use another PinCheck="
            )
        else:
            self._drain.protected(self.vm, self.config.freeze_timeout_s)

    # Inside

    def _go_on_out(self) -> None:
        """What the predecessor had looked at before may have changed since."""
        vm = self._registered()
        action = self._machine.enable()
        if action is Action.SWAP_OUT:
            self._resuming = asyncio.get_running_loop().create_task(self._start_checked(vm), name="resume")
            self._changed()
        else:
            self._perform(action)

    async def _look_before_swap_out(self, vm: Vm) -> None:
        """NoSuchVMError if the VM ends meanwhile: what is looked at is closed then."""
        try:
            await self.check_before_enable()
            if self.vm is vm:
                await self._drain.prepare(vm, self.config)
        except Exception:
            if self.vm is vm:
                raise
        if self.vm is not vm:
            raise NoSuchVMError("the VM has ended")

    async def _start_checked(self, vm: Vm) -> None:
        error: VmmswapError | None = None
        try:
            await self._look_before_swap_out(vm)
        except VmmswapError as refusal:
            error = refusal
        except Exception as bug:
            _log.exception("bug in what is looked at before a swap-out goes on")
            error = InternalError(_bug(bug))
        if self.vm is not vm:
            return
        if not error and not self._machine.is_turned_back:
            self._perform(Action.SWAP_OUT)
            return
        if error:
            _log.warning("the swap-out that was under way does not go on: %s", error)
        vm.engine.forget_job()
        with guarded(_NOT_RECORDED):
            vm.change(interrupted=0)
        self._perform(self._machine.not_begun(error, vm.engine.stats().tracking))

    def _drained(self) -> None:
        if self.vm is not None:
            self.vm.engine.resume()

    def _drain_failed(self, reason: str) -> None:
        if self.vm is not None:
            self._drain_error = reason
            self.vm.engine.cancel()

    def _drain_idle(self) -> None:
        """What waited for the VM to go on."""
        if self.vm is not None and self._machine.ending and self._machine.job is Job.NONE:
            with guarded("the VM is not released"):
                self._nothing_runs()

    def _with_drain_error(self, event: JobDone) -> JobDone:
        reason, self._drain_error = self._drain_error, ""
        if not reason or event.error is not None:
            return event
        return JobDone(event.job, NotSupportedError(reason), event.cancelled)

    def _with_full_file_system(self, event: JobDone) -> JobDone:
        """The engine knows that there was no memory, and not whose."""
        if event.job is not Job.SWAP_IN or not isinstance(event.error, NoSpaceError) or not self._starvation:
            return event
        why = self._starvation.why_not_all()
        error = (
            NoSpaceError(f"cannot swap all in: {why}; what is out is still served") if why else event.error
        )
        return JobDone(event.job, error, event.cancelled)

    def _idle_engine(self) -> Engine | None:
        return self.vm.engine if self.vm is not None and self._machine.job is Job.NONE else None

    def _registered(self) -> Vm:
        if self.vm is None:
            raise NoSuchVMError(f"no VMM has handed its memory over to {self.name} yet")
        return self.vm

    def _pids(self) -> list[int]:
        """Whose cgroups pay for pages that come back: ours, if the VM's processes have all gone."""
        if self.vm is None:
            return []
        living = [process for process in self.vm.processes.values() if not is_gone(process.uffd)]
        return [process.pid for process in living if process.pid] if living else [os.getpid()]

    def _grant_pages(self, pages: int) -> None:
        if self.vm is not None:
            self.vm.engine.set_budget(pages)

    def _out_pages(self) -> int:
        if self.vm is None:
            return 0
        stats = self.vm.engine.stats()
        return stats.swap_pages + stats.poisoned_pages

    def _poisoned_pages(self) -> int:
        return self.vm.engine.stats().poisoned_pages if self.vm else 0

    def _order_swap_in(self) -> None:
        self._is_short_of_memory = False
        self._perform(self._machine.disable())

    def _perform(self, action: Action) -> None:
        """Do what the machine says, and tell. A job that cannot start has failed at once. Raises nothing: the
        machine counts on what it said.
        """
        vm = self.vm
        if vm is not None:
            if vm.manifest.wants_out != self._machine.wants_out:
                with guarded(_NOT_RECORDED):
                    vm.change(wants_out=self._machine.wants_out)
            if action is Action.TURN:
                vm.engine.cancel()
            while action not in (Action.NOTHING, Action.TURN):
                action = self._start(vm, action)
        if self._machine.job is Job.NONE:
            with guarded("what follows an operation is not done"):
                self._nothing_runs()
        self._changed()

    def _start(self, vm: Vm, action: Action) -> Action:
        """Start a job; what to do next if it cannot."""
        try:
            self._start_job(vm, action)
        except Exception as error:
            log_failure(f"cannot {action.value}", error)
            known = (
                error if isinstance(error, VmmswapError) else InternalError(f"an internal error: {error!r}")
            )
            return self._machine.job_done(known, vm.engine.stats().tracking)
        with guarded("the beginning of the operation is not in the log"):
            self._operation_log.started(self._machine.operation)
        return Action.NOTHING

    def _start_job(self, vm: Vm, action: Action) -> None:
        options = self.config.swap_out_options(
            promised_unpinned=not vm.manifest.pins, qmp_drained=self._drain.is_ready
        )
        match action:
            case Action.SWAP_OUT:
                self._drain.job_starts()
                vm.engine.start_swap_out(options)
            case Action.SWAP_IN:
                if not self._room.has_room():
                    self._say_short_of_memory()
                    raise NoSpaceError(self._room.message)
                vm.engine.start_swap_in()
                self._room.start()
            case Action.TRIM:
                vm.engine.start_trim(options)
            case _:
                raise InternalError(f"{action} is not a job")

    def _memory_is_short(self) -> None:
        """During a swap-in: stop it, and go on when there is more."""
        machine = self._machine
        if machine.job is Job.SWAP_IN and machine.following is Job.NONE:
            self._say_short_of_memory()
            self._perform(machine.hold())

    def _say_short_of_memory(self) -> None:
        self._is_short_of_memory = True
        _log.warning("%s", self._room.message, extra=fields("swap-in", message_ids.LOW_MEMORY))

    def _nothing_runs(self) -> None:
        """Whether the VM can be let go, or what is tried again and when."""
        self._cancel_retry()
        machine = self._machine
        self._drain.finish()
        if machine.ending and not machine.tracking:
            if self._drain.is_busy:
                return  # the VMM would stand still for ever: _drain_idle() comes back here
            self.on_released(self._release_reason)
        elif machine.ending and not self._must_release:
            _log.error("the VM cannot be released: %s; the monitor goes on", machine.error)
            machine.ending = False
            self._release_reason = ""
        if self._is_short_of_memory:
            self._schedule_retry(_LOW_MEMORY_RETRY_S)
        elif machine.ending and machine.tracking:
            _log.error("the VM cannot be released: %s; it is served, and tried again", machine.error)
            self._schedule_retry(_FAILED_STOP_RETRY_S)

    def _schedule_retry(self, delay_s: float) -> None:
        self._retry = asyncio.get_running_loop().call_later(delay_s, self._order_swap_in)

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    async def _settled(self) -> None:
        """Until no job runs."""
        done = asyncio.Event()

        def look(status: Status) -> None:
            if status.state is not State.IN_PROGRESS:
                done.set()

        self._listeners.append(look)
        try:
            look(self.status())
            await done.wait()
        finally:
            self._listeners.remove(look)

    def _refuse_poisoned(self) -> None:
        if poisoned := self._poisoned_pages():
            error = self._machine.error
            raise StorageFailedError(
                error.message
                if error
                else f"{poisoned} pages of guest memory cannot be read back; all others are in. The VM cannot"
                " be released while they remain: the journal says why they are lost"
            )

    def _changed(self) -> None:
        with guarded("a change of the VM's state is not told of"):
            status = self.status()
            for listener in list(self._listeners):
                with guarded("a change of the VM's state is not told to all"):
                    listener(status)


def _bug(error: Exception) -> str:
    return f"an internal error: {error!r}"
