# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps a failure from stopping the work that follows."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from vmmswap.errors import VmmswapError

_log = logging.getLogger("vmmswap.monitor")


@contextlib.contextmanager
def guarded(what: str) -> Iterator[None]:
    """Log that `what` has failed, and continue after the block. A traceback only for a bug of ours."""
    try:
        yield
    except Exception as error:
        log_failure(what, error)


class Failures:
    """Logs repeated failures: each kind of error once in a row."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._last: tuple[type[Exception], int | None] | None = None

    def log(self, error: Exception) -> None:
        kind = (type(error), error.errno if isinstance(error, OSError) else None)
        if kind != self._last:
            self._last = kind
            log_failure(self._what, error)


def log_failure(what: str, error: Exception) -> None:
    if isinstance(error, VmmswapError):
        _log.error("%s: %s", what, error.message)
    elif isinstance(error, OSError):
        _log.error("%s: %s", what, error.strerror or error)
    else:
        _log.error("%s: a bug in vmmswap", what, exc_info=error)
