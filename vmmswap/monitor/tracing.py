# SPDX-License-Identifier: GPL-2.0-or-later
"""Page-fault logging: the engine's trace, drained by the clock and written as journal batches, as a file, or
both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from vmmswap import log
from vmmswap.engine import Engine
from vmmswap.errors import NoSuchVMError, StorageFailedError
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.monitor.guard import guarded
from vmmswap.monitor.trace_file import FileSink
from vmmswap.monitor.vm import Vm
from vmmswap.trace_format import (
    BATCH_FAULTS,
    BATCH_MS,
    Fault,
    TraceHeader,
    TraceRegion,
    batch_fields,
    header_fields,
)

_log = logging.getLogger("vmmswap.trace")
FILE_NAME = "page_fault.log"
_BATCHES_AT_ONCE = 8
_WRITTEN_S = 2.0  # after this, stop waiting


class Sink(Protocol):
    @property
    def has_failed(self) -> bool: ...

    def write(self, faults: Sequence[Fault]) -> None: ...

    def close(self) -> None: ...


class JournalSink:
    """One entry for the header, one for each batch."""

    has_failed = False

    def __init__(self, vm: str, header: TraceHeader) -> None:
        self._outbox = log.traces()
        self._vm = vm
        self._trace_id = os.urandom(16).hex()
        self._sequence = 0
        self._lost = 0
        self._put(header_fields(vm, self._trace_id, header))

    def write(self, faults: Sequence[Fault]) -> None:
        dropped = self._outbox.dropped
        self._put(batch_fields(self._vm, self._trace_id, self._sequence, faults))
        if self._outbox.dropped == dropped:
            self._sequence += 1
        else:
            self._lost += len(faults)
        if self._lost and not self._outbox.waiting:
            _log.warning("the journal took no entries for a while: %d page faults are not in it", self._lost)
            self._lost = 0

    def close(self) -> None:
        """Nothing to do: each entry stands for itself."""

    def _put(self, fields: dict[str, str]) -> None:
        self._outbox.put({**fields, "PRIORITY": "7", "SYSLOG_IDENTIFIER": "vmmswap-monitor"})


class Tracing:
    """A running page-fault log."""

    def __init__(
        self, engine: Engine, sinks: Sequence[Sink], base_ns: int, on_failed: Callable[[], None]
    ) -> None:
        """base_ns: CLOCK_MONOTONIC at the time that the header names. on_failed() is called once no sink
        writes anything any more.
        """
        self._on_failed = on_failed
        self._has_failed = False
        self._engine = engine
        self._sinks = sinks
        self._base_ns = base_ns
        self._dropped = engine.stats().trace_dropped
        engine.set_trace(True)
        self._timer = self._schedule()

    def _schedule(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(BATCH_MS / 1000, self._tick)

    def _tick(self) -> None:
        self._timer = self._schedule()
        self._drain()
        if not self._has_failed and all(sink.has_failed for sink in self._sinks):
            self._has_failed = True
            self._on_failed()

    def _drain(self) -> bool:
        """Write this many batches at most: faults may come as fast as they are written, and other work waits.
        True while there are more.
        """
        is_more = all(self._drain_one() for _ in range(_BATCHES_AT_ONCE))
        dropped = self._engine.stats().trace_dropped
        if dropped > self._dropped:
            _log.warning("%d page faults came too fast and are not in the log", dropped - self._dropped)
            self._dropped = dropped
        return is_more

    def _drain_one(self) -> bool:
        """False if there was none."""
        records = self._engine.drain_trace(BATCH_FAULTS)
        if not records:
            return False
        faults = [
            Fault(max(0, record.time_ns - self._base_ns), record.addr, record.process_id)
            for record in records
        ]
        for sink in self._sinks:
            with guarded("page faults are not in the log"):
                sink.write(faults)
        return True

    async def finish(self) -> None:
        """Write what is left, and end; other work runs in between."""
        with contextlib.suppress(NoSuchVMError):  # it may end meanwhile
            self._halt()
            while self._drain():
                await asyncio.sleep(0)
        self._close()

    def stop(self) -> None:
        """The same at once: write only what can be written at once."""
        with contextlib.suppress(NoSuchVMError):
            self._halt()
            if self._drain():
                _log.warning("the last page faults are not in the log: there are too many to wait for")
        self._close()

    def _halt(self) -> None:
        self._timer.cancel()
        self._engine.set_trace(False)

    def _close(self) -> None:
        for sink in self._sinks:
            with guarded("a page-fault log cannot be closed"):
                sink.close()


class PageFaultLog:
    """The page-fault log of one monitor, for one VM at a time. kinds: of sinks; log_dir: for the file."""

    def __init__(self, kinds: Sequence[str], log_dir: Path) -> None:
        self._kinds = kinds
        self._path = log_dir / FILE_NAME
        self._tracing: Tracing | None = None
        self._file: FileSink | None = None  # the last one
        self._is_opening = False
        self._lock = asyncio.Lock()  # of logs that wait for the disk

    @property
    def is_on(self) -> bool:
        return self._tracing is not None or self._is_opening

    async def start(self, vm: Vm, disk_keep_free: str, on_failed: Callable[[], None]) -> None:
        """Log page faults from now on; no effect if they are being logged. StorageFailedError if the file
        cannot be written. on_failed() is called if it cannot be written any more, and nothing else is: then
        call finish().
        """
        self._is_opening = self._tracing is None
        try:
            async with self._lock:
                if self._tracing is None:
                    self._tracing = await self._start(vm, disk_keep_free, on_failed)
        finally:
            self._is_opening = False

    async def _start(self, vm: Vm, disk_keep_free: str, on_failed: Callable[[], None]) -> Tracing:
        regions = tuple(TraceRegion(item.addr, item.pages * PAGE_SIZE) for item in vm.manifest.regions)
        base_ns = time.monotonic_ns()
        header = TraceHeader(time.time_ns() // 1_000_000, regions)
        sinks: list[Sink] = []
        try:
            if "file" in self._kinds:
                sinks.append(await self._open_file(header, disk_keep_free))
            if "journal" in self._kinds:
                sinks.append(JournalSink(vm.manifest.name, header))
            return Tracing(vm.engine, sinks, base_ns, on_failed)
        except BaseException:
            for sink in sinks:
                sink.close()
            raise

    async def _open_file(self, header: TraceHeader, disk_keep_free: str) -> FileSink:
        if self._file is not None and not await _is_done(self._file):
            raise StorageFailedError(
                f"the last page-fault log is still being written to {self._path}: its disk does not answer"
            )
        file = self._file = FileSink(self._path, header, disk_keep_free)
        try:
            await asyncio.shield(asyncio.wrap_future(file.opened))
        except BaseException:
            file.close()
            raise
        return file

    async def finish(self) -> None:
        """Stop logging, and return when all is written, or when the disk has taken too long."""
        async with self._lock:
            tracing, self._tracing = self._tracing, None
            if tracing is not None:
                await tracing.finish()
            await self.written()

    def stop(self) -> None:
        """Stop logging."""
        tracing, self._tracing = self._tracing, None
        if tracing is not None:
            with guarded("the last page faults are not in the log"):
                tracing.stop()

    async def written(self) -> None:
        """After logging has stopped: wait for the disk, but not for long."""
        if self._tracing is None and self._file is not None and not await _is_done(self._file):
            _log.warning("%s is written later: its disk does not answer", self._path)


async def _is_done(file: FileSink) -> bool:
    done, _ = await asyncio.wait({asyncio.wrap_future(file.done)}, timeout=_WRITTEN_S)
    return bool(done)


def sink_kinds(configured: str, *, journal: bool) -> tuple[str, ...]:
    """Where to log to: "file", "journal" or both. configured: the value of PageFaultLog=, or ""."""
    if configured == "both":
        return ("file", "journal")
    return (configured or ("journal" if journal else "file"),)
