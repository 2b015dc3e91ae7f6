# SPDX-License-Identifier: GPL-2.0-or-later
"""Where log messages go: to the journal with fields that can be searched for, or as plain lines to stderr."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG_PRIORITY = 7


def under_journal() -> bool:
    """Whether our stderr is the journal: its native protocol then reaches the same place, with more in it."""
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


class JournalHandler(logging.Handler):
    """Sends records to the journal; each has VMMSWAP_VM, which a record's own fields may set."""

    def __init__(self, identifier: str, vm: str) -> None:
        super().__init__()
        from systemd.journal import send  # noqa: PLC0415  not needed without a journal

        self._send = send
        self._always = {"SYSLOG_IDENTIFIER": identifier, "VMMSWAP_VM": vm}

    def emit(self, record: logging.LogRecord) -> None:
        try:
            more = self._always | getattr(record, "journal_fields", {})
            self._send(self.format(record), PRIORITY=str(priority_of(record.levelno)), **more)
        except Exception:
            self.handleError(record)


def priority_of(level: int) -> int:
    """The syslog priority of a level of logging's."""
    return next((priority for least, priority in _PRIORITIES if level >= least), _DEBUG_PRIORITY)


def set_up(identifier: str, vm: str, level: int = logging.INFO) -> bool:
    """Direct all logging of this process; True if it goes to the journal."""
    handler: logging.Handler
    journal = under_journal()
    if journal:
        handler = JournalHandler(identifier, vm)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(f"{identifier}[{vm}]: %(levelname)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    return journal
