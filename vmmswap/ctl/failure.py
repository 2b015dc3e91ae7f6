# SPDX-License-Identifier: GPL-2.0-or-later
"""How vmmswapctl fails: its exit statuses, and the one line on stderr that goes with each."""

from __future__ import annotations

import enum

from vmmswap import errors
from vmmswap.errors import VmmswapError


class ExitStatus(enum.IntEnum):
    """What scripts see. 130 and 141 are what a shell reports of any tool ended by SIGINT or SIGPIPE."""

    DONE = 0
    FAILED = 1
    BAD_USAGE = 2
    NO_SUCH_VM = 3
    NOT_ALLOWED = 4
    NO_DAEMON = 5
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class CtlError(Exception):
    """The verb was not done. The message is one line, and says what to do next."""

    def __init__(self, status: ExitStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


_STATUS_OF: dict[type[VmmswapError], ExitStatus] = {
    errors.NoSuchVMError: ExitStatus.NO_SUCH_VM,
    errors.InvalidNameError: ExitStatus.BAD_USAGE,
    errors.AccessDeniedError: ExitStatus.NOT_ALLOWED,
}


def exit_status_of(error: VmmswapError) -> ExitStatus:
    """The exit status for an error of vmmswap's own, raised here or by a daemon."""
    return _STATUS_OF.get(type(error), ExitStatus.FAILED)


def one_line(text: str) -> str:
    """Text with each run of control characters and line breaks as one space: a peer may have written it."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
