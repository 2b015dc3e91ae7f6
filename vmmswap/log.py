# SPDX-License-Identifier: GPL-2.0-or-later
"""Where log messages go: to the journal with fields that can be searched for, or as plain lines to stderr.

Neither is waited for (outbox.py). What had to be dropped is counted, and the log says so when it continues.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from vmmswap.outbox import DatagramOutbox, Outbox, StreamOutbox

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG_PRIORITY = 7
_JOURNAL = "/run/systemd/journal/socket"
_LIMIT_BYTES = 1 << 20  # of messages that wait
_TRACES_LIMIT_BYTES = 8 << 20
_FLUSH_S = 2.0


def under_journal() -> bool:
    """True if our stderr is the journal: its native protocol then reaches the same place, with more in it."""
    stream = os.environ.get("JOURNAL_STREAM", "")
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"


def fields(operation: str = "", message_id: str = "", **more: str | int) -> dict[str, Any]:
    """The `extra=` of a log call for more fields in its journal entry; names of `more` in lower case."""
    found = {name.upper(): str(value) for name, value in more.items()}
    if operation:
        found["VMMSWAP_OPERATION"] = operation
    if message_id:
        found["MESSAGE_ID"] = message_id
    return {"journal_fields": found}


class JournalOutbox(DatagramOutbox):
    """Entries for the journal, in its native protocol."""

    def __init__(self, limit_bytes: int = _LIMIT_BYTES) -> None:
        super().__init__(_JOURNAL, limit_bytes, as_memfd=True)

    def put(self, entry: Mapping[str, str]) -> None:
        """Send an entry. Source of the format: systemd, docs/JOURNAL_NATIVE_PROTOCOL.md."""
        self.send(b"".join(_journal_field(name, value) for name, value in entry.items()))


def _journal_field(name: str, value: str) -> bytes:
    data = value.encode(errors="replace")
    if b"\n" in data:
        return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


class _Handler(logging.Handler):
    """Puts records into an outbox."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self.outbox = outbox
        self._told_dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._tell_dropped()
            self.put(self.format(record), record.levelno, getattr(record, "journal_fields", {}))
        except Exception:
            self.handleError(record)

    def put(self, text: str, level: int, more: Mapping[str, str]) -> None:
        raise NotImplementedError

    def _tell_dropped(self) -> None:
        dropped = self.outbox.dropped
        if dropped != self._told_dropped and not self.outbox.waiting:
            count, self._told_dropped = dropped - self._told_dropped, dropped
            self.put(f"{count} log messages were dropped: nobody took them", logging.WARNING, {})

    def flush(self) -> None:
        self.outbox.flush(_FLUSH_S)

    def close(self) -> None:
        self.outbox.close()
        super().close()


class JournalHandler(_Handler):
    """Sends records to the journal; each has VMMSWAP_VM, which a record's own fields may set."""

    def __init__(self, identifier: str, vm: str) -> None:
        self._journal = JournalOutbox()
        super().__init__(self._journal)
        self._always = {"SYSLOG_IDENTIFIER": identifier, "VMMSWAP_VM": vm}

    def put(self, text: str, level: int, more: Mapping[str, str]) -> None:
        self._journal.put({"MESSAGE": text, "PRIORITY": str(priority_of(level)), **self._always, **more})


class StderrHandler(_Handler):
    """Writes lines to stderr."""

    def __init__(self) -> None:
        super().__init__(StreamOutbox(2, _LIMIT_BYTES))

    def put(self, text: str, level: int, more: Mapping[str, str]) -> None:  # noqa: ARG002
        self.outbox.send(text.encode(errors="replace") + b"\n")


class RateLimit(logging.Filter):
    """For a logger of what others cause: the journal drops entries of a unit that writes too many, and nobody
    may have it drop the rest.
    """

    _MOST = 100
    _PERIOD_S = 60.0

    def __init__(self) -> None:
        super().__init__()
        self._since_s = -self._PERIOD_S
        self._count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        now_s = time.monotonic()
        if now_s - self._since_s >= self._PERIOD_S:
            self._since_s, self._count = now_s, 0
        self._count += 1
        if self._count == self._MOST:
            text = f"{record.getMessage()}; more of this kind is not logged for {self._PERIOD_S:g} s"
            record.msg, record.args = text, ()
        return self._count <= self._MOST


def priority_of(level: int) -> int:
    """The syslog priority of a level of logging's."""
    return next((priority for least, priority in _PRIORITIES if level >= least), _DEBUG_PRIORITY)


def set_up(identifier: str, vm: str = "", level: int = logging.INFO) -> bool:
    """Direct all logging of this process; True if it goes to the journal."""
    handler: _Handler
    journal = under_journal()
    if journal:
        handler = JournalHandler(identifier, vm)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = StderrHandler()
        name = f"{identifier}[{vm}]: %(levelname)s" if vm else identifier
        handler.setFormatter(logging.Formatter(f"{name}: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    return journal


@functools.cache
def traces() -> JournalOutbox:
    """For the journal's entries that are no messages, which must not crowd those out."""
    outbox = JournalOutbox(_TRACES_LIMIT_BYTES)
    outbox.start()
    return outbox


def _outboxes() -> Iterator[Outbox]:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            yield handler.outbox


def start() -> None:
    """From now on the running event loop sends what was not taken at once."""
    for outbox in _outboxes():
        outbox.start()


def dropped() -> int:
    """How many messages for people were, since the process started."""
    return sum(outbox.dropped for outbox in _outboxes())
