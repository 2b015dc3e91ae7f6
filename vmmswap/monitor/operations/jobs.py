# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the engine's jobs of one VM, one at a time, as its Machine says."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace

from vmmswap import message_ids
from vmmswap.config import Config
from vmmswap.engine import Job, JobDone, Mode
from vmmswap.errors import InternalError, NoSpaceError, NotSupportedError, VmmswapError
from vmmswap.log import fields
from vmmswap.monitor.guard import guarded, log_failure
from vmmswap.monitor.operations.drain import Drain
from vmmswap.monitor.operations.headroom import RoomWatch
from vmmswap.monitor.operations.machine import Action, Machine
from vmmswap.monitor.operations.net_freed import baseline
from vmmswap.monitor.operations.options import swap_out_options
from vmmswap.monitor.operations.report import OperationLog
from vmmswap.monitor.operations.starvation import Starvation
from vmmswap.monitor.operations.turn import Turn
from vmmswap.monitor.vm import Vm

_log = logging.getLogger("vmmswap.controller")

NOT_RECORDED = "a successor would not know the last order"


class Jobs:
    """Of one VM, until close(). error: why the VM's state is Failed from the start.

    on_change is called after each change of state. on_idle is called whenever no job runs: after one has
    ended, after an order that starts none, and while the VM is being released also when the guest is no
    longer held by QMP. on_turn is called when a swap-out that has waited for others may begin.
    """

    def __init__(  # noqa: PLR0913  all but two are given by name
        self,
        vm: Vm,
        config: Callable[[], Config],
        *,
        on_change: Callable[[], None],
        on_idle: Callable[[], None],
        on_turn: Callable[[], None],
        error: VmmswapError | None = None,
    ) -> None:
        self._vm = vm
        self._config = config
        self._on_change = on_change
        self._on_idle = on_idle
        self.machine = Machine()
        self.machine.job_done(error, vm.engine.stats().tracking)
        self.machine.wants_out = vm.manifest.wants_out
        self.is_short_of_memory = False  # a swap-in waits for memory
        self.spoiled: VmmswapError | None = None  # why all is brought back without an order
        self._operation_log = OperationLog()
        self._room = RoomWatch(self.pids, self._out_pages, vm.engine.set_budget, self._memory_is_short)
        self._turn = Turn(lambda: config().swap_outs_max, on_turn, self._progress)
        self._drain_error = ""
        self.starvation = Starvation(vm, self.pids, on_change)
        self.drain = Drain(vm, config, vm.engine.resume, self._drain_failed, self._drain_idle)

    def close(self) -> None:
        """The VM is gone: do nothing more for it."""
        self._room.stop()
        self._turn.release()
        self.starvation.stop()
        with guarded("the drain by QMP is not cancelled"):
            self.drain.drop()

    @property
    def is_queued(self) -> bool:
        """True if a swap-out waits for its turn."""
        return self._turn.is_waiting

    @property
    def short_of_memory_message(self) -> str:
        return self._room.message

    def perform(self, action: Action) -> None:
        """Do what the machine says, and tell. A job that cannot start has failed at once. Raises nothing: the
        machine counts on what it said.
        """
        if self._vm.manifest.wants_out != self.machine.wants_out:
            with guarded(NOT_RECORDED):
                self._vm.change(wants_out=self.machine.wants_out, **baseline(self._vm))
        if action is Action.CANCEL:
            action = self._cancel()
        while action is not Action.NOTHING:
            action = self._start(action)
        if self.machine.job is not Job.SWAP_OUT:
            self._turn.release()
        if self._vm.manifest.queued != self.is_queued:
            with guarded(NOT_RECORDED):
                self._vm.change(queued=self.is_queued)
        if self.machine.job is Job.NONE:
            with guarded("what follows an operation is not done"):
                self._on_idle()
        self._on_change()

    def job_done(self, event: JobDone) -> None:
        """The engine's job has ended. If this raises, it was not taken note of, and may be told again."""
        stats = self._vm.stats()
        stats = replace(stats, pause_us=max(stats.pause_us, self.drain.pause_us))
        self._room.stop()
        self.drain.job_ended()
        event = self._with_full_file_system(self._with_drain_error(event))
        with guarded("the end of the operation is not in the log"):
            self._operation_log.ended(self.machine.operation, stats, self._vm.engine.pin_check, event)
        with guarded(NOT_RECORDED):
            self._vm.change(interrupted=0)
        self.is_short_of_memory = self.is_short_of_memory and stats.tracking
        error = event.error
        if self.is_short_of_memory:
            error = error or NoSpaceError(self._room.message)
        if event.job is Job.SWAP_IN:
            error = error or self.spoiled
        self.perform(self.machine.job_done(error, stats.tracking))

    def protected(self) -> None:
        """The engine's job waits until the VMM's I/O has ended."""
        if self.machine.job is Job.NONE:
            return
        if self._vm.engine.stats().mode is Mode.FREEZE and self.machine.job is Job.SWAP_OUT:
            self._drain_failed(
                "the VMM must be frozen, because its userfaultfd or this kernel cannot write-protect, and"
                " a frozen VMM cannot be drained by QMP: use another PinCheck="
            )
        else:
            self.drain.protected()

    # Inside

    def _cancel(self) -> Action:
        """What to do next: a job that has not begun has ended at once."""
        if self.is_queued:
            return self.machine.not_begun(None, self._vm.engine.stats().tracking)
        self._vm.engine.cancel()
        return Action.NOTHING

    def _start(self, action: Action) -> Action:
        """Start a job; what to do next if it cannot."""
        if action is Action.SWAP_OUT and not self._turn.take():
            self._operation_log.queued()
            return Action.NOTHING
        try:
            self._start_job(action)
        except Exception as error:
            log_failure(f"cannot {action.value}", error)
            known = (
                error if isinstance(error, VmmswapError) else InternalError(f"an internal error: {error!r}")
            )
            return self.machine.job_done(known, self._vm.engine.stats().tracking)
        with guarded("the beginning of the operation is not in the log"):
            self._operation_log.started(self.machine.operation)
        return Action.NOTHING

    def _start_job(self, action: Action) -> None:
        engine = self._vm.engine
        options = swap_out_options(
            self._config(),
            engine.stats().total_pages,
            promised_unpinned=not self._vm.manifest.pins,
            qmp_drained=self.drain.is_ready,
        )
        match action:
            case Action.SWAP_OUT:
                self.drain.job_starts()
                engine.start_swap_out(options)
            case Action.SWAP_IN:
                if not self._room.has_room():
                    self._say_short_of_memory()
                    raise NoSpaceError(self._room.message)
                engine.start_swap_in()
                self._room.start()
            case Action.TRIM:
                engine.start_trim(options)
            case Action.FLUSH:
                engine.start_flush()
            case _:
                raise InternalError(f"{action} is not a job")

    def _memory_is_short(self) -> None:
        """During a swap-in: stop it, and resume it when there is more."""
        if self.machine.job is Job.SWAP_IN and self.machine.following is Job.NONE:
            self._say_short_of_memory()
            self.perform(self.machine.hold())

    def _say_short_of_memory(self) -> None:
        self.is_short_of_memory = True
        _log.warning("%s", self._room.message, extra=fields("swap-in", message_ids.LOW_MEMORY))

    def _drain_failed(self, reason: str) -> None:
        self._drain_error = reason
        self._vm.engine.cancel()

    def _drain_idle(self) -> None:
        """Do what waited until the VM was no longer held."""
        if self.machine.ending and self.machine.job is Job.NONE:
            with guarded("the VM is not released"):
                self._on_idle()

    def _with_drain_error(self, event: JobDone) -> JobDone:
        reason, self._drain_error = self._drain_error, ""
        if not reason or event.error is not None:
            return event
        return replace(event, error=NotSupportedError(reason))

    def _with_full_file_system(self, event: JobDone) -> JobDone:
        """The engine knows that there was no memory, and not whose."""
        if event.job is not Job.SWAP_IN or not isinstance(event.error, NoSpaceError):
            return event
        why = self.starvation.why_not_all()
        error = (
            NoSpaceError(f"cannot swap all in: {why}; what is out is still served") if why else event.error
        )
        return replace(event, error=error)

    def pids(self) -> list[int]:
        """Whose cgroups pay for pages that come back: ours, if the VM's processes have all gone."""
        living = [process for process in self._vm.processes.values() if not process.has_gone]
        return [process.pid for process in living if process.pid] if living else [os.getpid()]

    def _progress(self) -> object:
        stats = self._vm.engine.stats()
        return stats.progress_pages, stats.written_bytes, stats.stored_ram_bytes

    def _out_pages(self) -> int:
        stats = self._vm.engine.stats()
        return stats.swap_pages + stats.poisoned_pages
