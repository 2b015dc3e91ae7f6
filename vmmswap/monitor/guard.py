# SPDX-License-Identifier: GPL-2.0-or-later
"""For what must not keep anything else from being done."""

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


def log_failure(what: str, error: Exception) -> None:
    if isinstance(error, VmmswapError):
        _log.error("%s: %s", what, error.message)
    elif isinstance(error, OSError):
        _log.error("%s: %s", what, error.strerror or error)
    else:
        _log.error("%s: a bug of vmmswap's", what, exc_info=error)
