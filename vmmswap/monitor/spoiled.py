# SPDX-License-Identifier: GPL-2.0-or-later
"""Why memory that is out must come back without an order: a process spoils it, or may."""

from __future__ import annotations

import enum
from typing import NamedTuple

from vmmswap.errors import NotSupportedError


class How(enum.Enum):
    """What a process does that spoils memory that is out."""

    MAPS = enum.auto()
    MAPS_PRIVATELY = enum.auto()
    HAS_IT_OPEN = enum.auto()
    CANNOT_BE_ATTACHED_TO = enum.auto()
    ALLOWS_HUGE_PAGES = enum.auto()


class Spoiler(NamedTuple):
    """A process and what it does."""

    pid: int
    how: How


class SpoiledError(NotSupportedError):
    """A process spoils memory that is out. Each look for such processes makes a new error; two with the same
    spoiler report the same thing, whatever their texts say.
    """

    def __init__(self, spoiler: Spoiler, message: str) -> None:
        super().__init__(message)
        self.spoiler = spoiler


def spoiler_of(error: Exception | None) -> Spoiler | None:
    """Who the error is about; None for other errors."""
    return error.spoiler if isinstance(error, SpoiledError) else None
