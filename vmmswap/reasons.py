# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said of an error to people: without "[Errno 2]", which tells nobody anything."""

from __future__ import annotations


def reason_of(error: BaseException) -> str:
    """What went wrong, and with which file, if that is known."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
