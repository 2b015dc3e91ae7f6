# SPDX-License-Identifier: GPL-2.0-or-later
"""The page-fault log as a file of JSON lines, written by a thread of its own: a disk may take its time.

What waits for the disk is bounded. What is beyond the bound is dropped and counted, and the log of messages
says so once the disk takes something again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from vmmswap.disk_limits import is_in_reserve
from vmmswap.errors import StorageFailedError
from vmmswap.trace_format import BATCH_FAULTS, Fault, TraceHeader, fault_line, header_line

_log = logging.getLogger("vmmswap.trace")

LIMIT_FAULTS = 16 * BATCH_FAULTS  # page faults that may wait, some 10 MB


class FileSink:
    """One file, made anew. opened: done once it can be written, or with StorageFailedError. done: all that
    was taken is written, or never will be.

    A guest makes as many page faults as it likes, so the log, too, leaves the reserve of DiskKeepFree=. What
    cannot be written is left out and reported once.
    """

    def __init__(self, path: Path, header: TraceHeader, disk_keep_free: str) -> None:
        self.opened: Future[None] = Future()
        self.done: Future[None] = Future()
        self._path = path
        self._disk_keep_free = disk_keep_free
        self._header = header
        self._waiting: deque[Sequence[Fault]] = deque()
        self._waiting_faults = 0  # those that are being written included
        self._dropped = 0
        self._is_closed = False
        self._has_failed = False
        self._changed = threading.Condition()
        # A daemon thread: the process must be able to exit even if its disk hangs.
        threading.Thread(target=self._run, name="page-fault log", daemon=True).start()

    def write(self, faults: Sequence[Fault]) -> None:
        """Take these page faults. Waits for nobody."""
        with self._changed:
            if self._waiting_faults + len(faults) > LIMIT_FAULTS:
                self._dropped += len(faults)
                return
            self._waiting.append(faults)
            self._waiting_faults += len(faults)
            self._changed.notify()

    @property
    def has_failed(self) -> bool:
        """True if nothing is written any more."""
        return self._has_failed

    def close(self) -> None:
        """Take no more page faults; write those that wait."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    # On the thread

    def _run(self) -> None:
        try:
            fd = self._open()
        except StorageFailedError as error:
            self.opened.set_exception(error)
        else:
            self.opened.set_result(None)
            self._write_all(fd)
        self.done.set_result(None)

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(self._path, flags, 0o640)
        except OSError as error:
            raise StorageFailedError(
                f"cannot write the page-fault log {self._path}: {error.strerror}: give --log-dir, or set"
                " PageFaultLog=journal"
            ) from None

    def _write_all(self, fd: int) -> None:
        self._write(fd, header_line(self._header) + "\n")
        while (faults := self._next()) is not None:
            self._write(fd, "".join(fault_line(fault) + "\n" for fault in faults))
            self._written(len(faults))
        with contextlib.suppress(OSError):
            os.close(fd)

    def _next(self) -> Sequence[Fault] | None:
        """None if it is closed and nothing is left."""
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            return self._waiting.popleft() if self._waiting else None

    def _written(self, count: int) -> None:
        with self._changed:
            self._waiting_faults -= count
            dropped, self._dropped = self._dropped, 0
        if dropped:
            _log.warning("%s is written too slowly: %d page faults are not in it", self._path, dropped)

    def _write(self, fd: int, text: str) -> None:
        if self._has_failed:
            return
        data = memoryview(text.encode("ascii"))
        try:
            if is_in_reserve(fd, self._disk_keep_free):
                raise OSError(errno.ENOSPC, "the file system has only DiskKeepFree= left")
            while data:
                data = data[os.write(fd, data) :]
        except OSError as error:
            self._has_failed = True
            _log.error("cannot write %s: %s; logging of page faults ends here", self._path, error.strerror)
