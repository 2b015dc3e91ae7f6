# SPDX-License-Identifier: GPL-2.0-or-later
"""Page-fault logging: the engine's trace, drained by the clock and written as journal batches, as a file, or
both.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vmmswap import log
from vmmswap.disk_limits import is_in_reserve
from vmmswap.engine import Engine
from vmmswap.errors import StorageFailedError
from vmmswap.handoff.messages import PAGE_SIZE
from vmmswap.monitor.guard import guarded
from vmmswap.monitor.vm import Vm
from vmmswap.trace_format import (
    BATCH_FAULTS,
    BATCH_MS,
    Fault,
    TraceHeader,
    TraceRegion,
    batch_fields,
    fault_line,
    header_fields,
    header_line,
)

_log = logging.getLogger("vmmswap.trace")
FILE_NAME = "page_fault.log"
_BATCHES_A_TICK = 8


class Sink(Protocol):
    def write(self, faults: Sequence[Fault]) -> None: ...

    def close(self) -> None: ...


class JournalSink:
    """One entry for the header, one for each batch."""

    def __init__(self, vm: str, header: TraceHeader) -> None:
        self._outbox = log.traces()
        self._vm = vm
        self._trace_id = secrets.token_hex(16)
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


class FileSink:
    """The seed's JSON lines. What cannot be written is left out and said once.

    A guest makes as many page faults as it likes, so the log, too, leaves the reserve of DiskKeepFree=.
    """

    def __init__(self, path: Path, header: TraceHeader, disk_keep_free: str) -> None:
        self._path = path
        self._disk_keep_free = disk_keep_free
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise StorageFailedError(
                f"cannot write the page-fault log {path}: {error.strerror}: give --log-dir, or set"
                " PageFaultLog=journal"
            ) from None
        self._file = os.fdopen(fd, "w", encoding="ascii")
        self._failed = False
        self._write(header_line(header) + "\n")

    def write(self, faults: Sequence[Fault]) -> None:
        self._write("".join(fault_line(fault) + "\n" for fault in faults))

    def _write(self, text: str) -> None:
        if self._failed:
            return
        try:
            if is_in_reserve(self._file.fileno(), self._disk_keep_free):
                raise OSError(errno.ENOSPC, "the file system has only DiskKeepFree= left")
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            self._failed = True
            _log.error("cannot write %s: %s; logging of page faults ends here", self._path, error.strerror)

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            _log.error("cannot write %s: %s", self._path, error.strerror)


class Tracing:
    """A running page-fault log."""

    def __init__(self, engine: Engine, sinks: Sequence[Sink], base_ns: int) -> None:
        """base_ns: CLOCK_MONOTONIC at the time that the header names."""
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
        self._drain(_BATCHES_A_TICK)

    def _drain(self, batches: int | None = None) -> None:
        """So many at most: faults may come as fast as they are written, and others wait."""
        for _ in itertools.count() if batches is None else range(batches):
            records = self._engine.drain_trace(BATCH_FAULTS)
            if not records:
                break
            faults = [
                Fault(max(0, record.time_ns - self._base_ns), record.addr, record.process_id)
                for record in records
            ]
            for sink in self._sinks:
                with guarded("page faults are not in the log"):
                    sink.write(faults)
        dropped = self._engine.stats().trace_dropped
        if dropped > self._dropped:
            _log.warning("%d page faults came too fast and are not in the log", dropped - self._dropped)
            self._dropped = dropped

    def stop(self) -> None:
        """Write what is left, and end."""
        self._timer.cancel()
        self._engine.set_trace(False)
        self._drain()
        for sink in self._sinks:
            with guarded("a page-fault log cannot be closed"):
                sink.close()


def sink_kinds(configured: str, *, journal: bool) -> tuple[str, ...]:
    """Where to log to: "file", "journal" or both. configured: the value of PageFaultLog=, or ""."""
    if configured == "both":
        return ("file", "journal")
    return (configured or ("journal" if journal else "file"),)


def start_tracing(vm: Vm, kinds: Sequence[str], log_dir: Path, disk_keep_free: str) -> Tracing:
    """Log page faults from now on. StorageFailedError if the file cannot be written."""
    regions = tuple(TraceRegion(item.addr, item.pages * PAGE_SIZE) for item in vm.manifest.regions)
    base_ns = time.monotonic_ns()
    header = TraceHeader(time.time_ns() // 1_000_000, regions)
    sinks: list[Sink] = []
    if "file" in kinds:
        sinks.append(FileSink(log_dir / FILE_NAME, header, disk_keep_free))
    if "journal" in kinds:
        sinks.append(JournalSink(vm.manifest.name, header))
    return Tracing(vm.engine, sinks, base_ns)
