# SPDX-License-Identifier: GPL-2.0-or-later
"""Hands the engine's events to their handlers, each event independently of the others.

An event that is taken from the engine exists nowhere else. A lost one is a child that a successor does not
serve, or a job that never ends. So each event is handled on its own, and if its handler fails (no free fd, no
memory) it is called again until it succeeds. Handlers must bear that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from vmmswap import message_ids
from vmmswap.engine import (
    Engine,
    EngineEvent,
    FaultsStarved,
    JobDone,
    Notice,
    PageHealed,
    PagePoisoned,
    PagesLeft,
    PagesLost,
    ProcessForked,
    ProcessGone,
    ProcessMoved,
    Protected,
    ReplayDone,
    Waking,
)
from vmmswap.errors import NoSuchVMError
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.log import fields
from vmmswap.monitor.guard import log_failure
from vmmswap.monitor.lost import LostReport
from vmmswap.monitor.mappers.processes import Processes
from vmmswap.monitor.operations.orders import Orders
from vmmswap.monitor.pages import as_field, described
from vmmswap.monitor.vm import Vm
from vmmswap.status import Operation

_log = logging.getLogger("vmmswap.monitor")

_AT_ONCE = 256  # events at a time; the loop has other work
_FIRST_RETRY_S, _LAST_RETRY_S = 0.25, 10.0


class EventPump:
    """Handles one engine's events, from start() until stop(). flush reports events that wait for more of
    their kind.
    """

    def __init__(
        self,
        engine: Engine,
        handle: Callable[[EngineEvent], None],
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._handle = handle
        self.flush = flush
        self._event_fd = engine.event_fd
        self._failed: dict[int, asyncio.TimerHandle] = {}
        self._next_key = 0
        self._is_running = False

    def start(self) -> None:
        self._is_running = True
        asyncio.get_running_loop().add_reader(self._event_fd, self.take)

    def stop(self) -> None:
        """The remaining events are of no use any more: the VM is gone, or a successor reads them."""
        self._is_running = False
        self.flush()
        asyncio.get_running_loop().remove_reader(self._event_fd)
        for timer in self._failed.values():
            timer.cancel()
        self._failed.clear()

    def take(self) -> None:
        """Handle the events that there are now. The fd stays readable while there are more."""
        for _ in range(_AT_ONCE):
            event = self._next()
            if event is None:
                return
            self._try(event, _FIRST_RETRY_S)

    def _next(self) -> EngineEvent | None:
        if self._is_running:  # a handler may have ended the VM
            with contextlib.suppress(NoSuchVMError):
                return self._engine.next_event()
        return None

    def _try(self, event: EngineEvent, retry_s: float) -> None:
        try:
            self._handle(event)
        except Exception as error:
            log_failure(f"{type(event).__name__} from the engine cannot be handled; trying again", error)
            if self._is_running:
                self._try_later(event, retry_s)

    def _try_later(self, event: EngineEvent, retry_s: float) -> None:
        key, self._next_key = self._next_key, self._next_key + 1

        def again() -> None:
            del self._failed[key]
            self._try(event, min(2 * retry_s, _LAST_RETRY_S))

        self._failed[key] = asyncio.get_running_loop().call_later(retry_s, again)


class EventHandler:
    """Handles each event of a VM's engine. It may be called again with the same event."""

    def __init__(self, vm: Vm, processes: Processes, orders: Orders, on_change: Callable[[], None]) -> None:
        """on_change is called when pages are lost: State reports that from then on."""
        self._vm = vm
        self._processes = processes
        self._jobs = orders.jobs
        self._wake_ups = orders.wake_ups
        self._lost = LostReport(
            vm.engine,
            where=lambda page_idx: _where(vm, page_idx),
            is_busy=lambda: orders.is_busy,
            on_lost=on_change,
        )

    def flush(self) -> None:
        """Report events that wait for more of their kind."""
        self._lost.report()

    def __call__(self, event: EngineEvent) -> None:
        self._vm.pulse.stir()
        match event:
            case ProcessForked():
                self._processes.forked(event)
            case ProcessGone():
                self._processes.gone(event.process_id)
            case ProcessMoved():
                self._vm.note_ranges(event.process_id)
            case Waking() | ReplayDone():
                self._wake_ups.take(event)
            case Protected():
                self._jobs.protected()
            case JobDone():
                self._lost.report()
                self._jobs.job_done(event)
            case PagePoisoned():
                self._say_poisoned(event)
            case PagesLeft():
                self._say_left(event)
            case PagesLost():
                self._lost.found()
            case FaultsStarved():
                self._jobs.starvation.found(event.page_idx)
            case PageHealed():
                _log.warning("page %d can be read again and is no longer poisoned", event.page_idx)
            case Notice():
                message_id = message_ids.LATE_MAPPER if event.page_idx is not None else ""
                where = "" if event.page_idx is None else f" ({_where(self._vm, event.page_idx)})"
                _log.warning("%s%s", event.message, where, extra=fields("", message_id))

    def _say_left(self, event: PagesLeft) -> None:
        left = self._vm.engine.left()
        _log.warning(
            "the swap-out leaves %d pages on RAM: %s (%s)",
            left.pages,
            event.message,
            described(left, lambda page_idx: _where(self._vm, page_idx)),
            extra=fields(
                Operation.SWAP_OUT,
                message_ids.PAGES_LEFT,
                vmmswap_left_pages=left.pages,
                vmmswap_left_ranges=as_field(left),
            ),
        )

    def _say_poisoned(self, event: PagePoisoned) -> None:
        _log.error(
            "a page of guest memory cannot be read back: %s (%s); whoever touches it gets SIGBUS",
            event.message,
            _where(self._vm, event.page_idx),
            extra=fields("", message_ids.PAGE_POISONED),
        )


def _where(vm: Vm, page_idx: int) -> str:
    """Describe a page for people: guest address in the VMM, offset in its memfd."""
    for item in vm.manifest.regions:
        if item.page_idx <= page_idx < item.page_idx + item.pages:
            into_bytes = (page_idx - item.page_idx) * PAGE_SIZE
            offset_bytes = item.offset_bytes + into_bytes
            file = vm.backing.file_of(item.memfd)
            return f"address {item.addr + into_bytes:#x}, offset {offset_bytes:#x} of {file}"
    return f"page {page_idx}"
