# SPDX-License-Identifier: GPL-2.0-or-later
"""One VM's orders: what each means for the job that runs, and when the VM can be released."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from vmmswap import message_ids
from vmmswap.engine import Engine, Job
from vmmswap.errors import (
    BusyError,
    InternalError,
    NoSpaceError,
    NoSuchVMError,
    NotSupportedError,
    StorageFailedError,
    VmmswapError,
)
from vmmswap.log import fields
from vmmswap.monitor import own_memory
from vmmswap.monitor.guard import guarded
from vmmswap.monitor.operations.counting import Counting
from vmmswap.monitor.operations.housekeeping import Housekeeping
from vmmswap.monitor.operations.jobs import NOT_RECORDED, Jobs
from vmmswap.monitor.operations.machine import Action, Machine
from vmmswap.monitor.operations.pressure import PressureWatch
from vmmswap.monitor.operations.report import starved, status_of
from vmmswap.monitor.operations.wake_ups import WakeUps
from vmmswap.monitor.spoiled import spoiler_of
from vmmswap.monitor.surroundings import Surroundings
from vmmswap.monitor.vm import Vm
from vmmswap.status import State, Status

_log = logging.getLogger("vmmswap.controller")

_LOW_MEMORY_RETRY_S = 1.0
_FAILED_STOP_RETRY_S = 5.0


class Checks(Protocol):
    """Raises VmmswapError if memory must not leave, or if the VM cannot be released now."""

    async def check_before_enable(self) -> None: ...

    def check_before_exit(self) -> None: ...


class Orders:
    """Of one VM, until close(). error: why its state is Failed from the start.

    on_released(reason) is called, once release() was, when the VM can be released: all is in.
    """

    def __init__(
        self,
        vm: Vm,
        around: Surroundings,
        checks: Checks,
        on_released: Callable[[str], None],
        *,
        error: VmmswapError | None = None,
    ) -> None:
        self._vm = vm
        self._page_fault_log = around.page_fault_log
        self._checks = checks
        self._on_change = around.on_change
        self._on_released = on_released
        self._is_closed = False
        self._orders = 0  # to notice that a later one came
        self._release_reason = ""
        self._must_release = False  # nobody can be told that it failed: try until it works
        self._retry: asyncio.TimerHandle | None = None
        self._resuming: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Event] = set()  # for the end of all jobs
        self._counting = Counting()
        self.jobs = Jobs(
            vm,
            lambda: around.config,
            on_change=self._changed,
            on_idle=self._nothing_runs,
            on_turn=self._start_later,
            error=error,
        )
        self.wake_ups = WakeUps(vm, lambda: around.config, self.jobs.pids)
        self._housekeeping = Housekeeping(self._idle_engine, vm.pulse)
        self._housekeeping.start()
        self._pressure = PressureWatch(vm.engine, vm.pulse, self.jobs.pids)
        self.glance_at_memory = self._pressure.glance
        self._pressure.look_on()

    def close(self) -> None:
        """The VM is gone: do nothing more for it."""
        self._is_closed = True
        self._housekeeping.stop()
        self._pressure.stop()
        self._cancel_retry()
        self.wake_ups.close()
        self.jobs.close()
        for waiting in self._waiting:
            waiting.set()

    @property
    def machine(self) -> Machine:
        return self.jobs.machine

    @property
    def is_busy(self) -> bool:
        """True if an operation runs."""
        return self.machine.job is not Job.NONE

    def status(self) -> Status:
        """The VM's status now."""
        status = status_of(
            self.machine,
            self._vm,
            logging=self._page_fault_log.is_on,
            queued=self.jobs.is_queued,
            drain_pause_us=self.jobs.drain.pause_us,
        )
        return starved(status, self.jobs.starvation.error)

    async def refresh(self) -> None:
        await self._counting.refresh(self._vm)

    async def enable(self) -> None:
        self._vm.check_may_go_out()
        self._orders += 1
        order = self._orders
        self.machine.check_enable()
        if self.machine.job is not Job.SWAP_OUT:
            await self._look_before_swap_out()
        if order == self._orders:
            self.jobs.spoiled = None
            self.jobs.is_short_of_memory = False
            self.jobs.perform(self.machine.enable())
        elif self.machine.job is Job.NONE:
            self.jobs.drain.finish()

    async def disable(self) -> None:
        self.jobs.spoiled = None
        self._orders += 1
        poisoned = self._poisoned_pages()
        self._order_swap_in()
        if poisoned:
            await self._settled()
            self._refuse_poisoned()

    async def trim(self) -> None:
        self._vm.check_may_go_out()
        if self.machine.job is Job.NONE:
            await self.jobs.drain.prepare()
        if not self._is_closed:
            self.jobs.perform(self.machine.trim())

    def wake(self) -> None:
        """BusyError while an operation runs that leaves nothing to bring back, or nothing of it."""
        if self.machine.job not in (Job.NONE, Job.SWAP_IN):
            raise BusyError(f"a {self.machine.operation} is under way: wake when it is done")
        if self.machine.job is Job.NONE and self.machine.tracking:
            self.wake_ups.ordered()

    def flush(self) -> None:
        """NotSupportedError if the VM has no RAM tier, or no disk tier."""
        fds = self._vm.engine.tier_fds
        if fds.ram < 0:
            raise NotSupportedError(
                "the VM's memory goes to a plain swap file, and nothing of it is on RAM when it is out"
            )
        if fds.disk < 0:
            raise NotSupportedError("the VM has no disk tier: DiskTierMax=0 was set when it registered")
        self.jobs.perform(self.machine.flush())

    async def exit(self) -> None:
        self._checks.check_before_exit()
        self._orders += 1
        poisoned = self._poisoned_pages()
        self.release("Exit was called", must=False)
        if poisoned:
            await self._settled()
            self._refuse_poisoned()
        if self.jobs.is_short_of_memory:
            raise NoSpaceError(self.jobs.short_of_memory_message)

    def release(self, reason: str, *, must: bool) -> None:
        """Swap all in, then call on_released. must: try until it works; else a failure calls it off."""
        self._must_release = self._must_release or must
        self._release_reason = self._release_reason or reason
        self.machine.ending = True
        self._order_swap_in()

    def bring_back(self, why: VmmswapError, message_id: str = message_ids.LATE_MAPPER) -> None:
        """Swap all in, because somebody spoils what is out; State is Failed with the reason. A second call
        for the same spoiler does nothing.
        """
        spoiler = spoiler_of(why)
        if why is self.jobs.spoiled or (spoiler and spoiler == spoiler_of(self.jobs.spoiled)):
            return
        _log.error("%s: all memory is swapped in now", why, extra=fields("", message_id))
        self._orders += 1
        self._order_swap_in()
        self.jobs.spoiled = why

    def resume(self, last_job: Job) -> None:
        """Resume what a predecessor was about, by the last order that it had."""
        if not self.machine.wants_out and self.machine.tracking:
            self._order_swap_in()
        elif self.machine.wants_out and (last_job is Job.SWAP_OUT or self._vm.manifest.queued):
            self._resume_swap_out()
        else:
            self.wake_ups.resume()

    # Inside

    def _resume_swap_out(self) -> None:
        action = self.machine.enable()
        if action is Action.SWAP_OUT:
            self._start_later()
            self._changed()
        else:
            self.jobs.perform(action)

    def _start_later(self) -> None:
        """Look once more first: it may be long since a predecessor did, or since the order was accepted."""
        self._resuming = asyncio.get_running_loop().create_task(self._start_checked(), name="resume")

    async def _look_before_swap_out(self) -> None:
        """NoSuchVMError if the VM ends meanwhile: what is looked at is closed then."""
        try:
            await self._checks.check_before_enable()
            if not self._is_closed:
                await self.jobs.drain.prepare()
        except Exception:
            if not self._is_closed:
                raise
        if self._is_closed:
            raise NoSuchVMError("the VM has ended")

    async def _start_checked(self) -> None:
        error: VmmswapError | None = None
        try:
            await self._look_before_swap_out()
        except VmmswapError as refusal:
            error = refusal
        except Exception as bug:
            _log.exception("bug in the checks before a swap-out is resumed")
            error = InternalError(f"an internal error: {bug!r}")
        if self._is_closed:
            return
        if not error and not self.machine.is_cancelled:
            self.jobs.perform(Action.SWAP_OUT)
            return
        if error:
            _log.warning("the swap-out that was accepted does not begin: %s", error)
        self._vm.engine.forget_job()
        with guarded(NOT_RECORDED):
            self._vm.change(interrupted=0)
        self.jobs.perform(self.machine.not_begun(error, self._vm.engine.stats().tracking))

    def _order_swap_in(self) -> None:
        self.jobs.is_short_of_memory = False
        self.jobs.perform(self.machine.disable())

    def _nothing_runs(self) -> None:
        """Release the VM if that was ordered and can be, else schedule what is tried again."""
        self._cancel_retry()
        own_memory.trim_soon()
        machine, drain = self.machine, self.jobs.drain
        drain.finish()
        if machine.ending and not machine.tracking:
            if drain.is_busy:
                return  # the VMM would stand still for ever: this is called again when it runs
            self._on_released(self._release_reason)
        elif machine.ending and not self._must_release:
            _log.error("the VM cannot be released: %s; the monitor stays", machine.error)
            machine.ending = False
            self._release_reason = ""
        if self.jobs.is_short_of_memory:
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

    def _idle_engine(self) -> Engine | None:
        return None if self.is_busy else self._vm.engine

    def _poisoned_pages(self) -> int:
        return self._vm.engine.stats().poisoned_pages

    async def _settled(self) -> None:
        """Until no job runs, or the VM is gone."""
        done = asyncio.Event()
        self._waiting.add(done)
        try:
            if self.machine.state is State.IN_PROGRESS and not self._is_closed:
                await done.wait()
        finally:
            self._waiting.discard(done)

    def _refuse_poisoned(self) -> None:
        if self._is_closed:
            return
        if poisoned := self._poisoned_pages():
            error = self.machine.error
            raise StorageFailedError(
                error.message
                if error
                else f"{poisoned} pages of guest memory cannot be read back; all others are in. The VM cannot"
                " be released while they remain: the journal says why they are lost"
            )

    def _changed(self) -> None:
        self._vm.pulse.stir()
        if self.machine.state is not State.IN_PROGRESS:
            for waiting in self._waiting:
                waiting.set()
        if self.is_busy:
            self._pressure.look_on()
        self._on_change()
