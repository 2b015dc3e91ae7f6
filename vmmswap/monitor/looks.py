# SPDX-License-Identifier: GPL-2.0-or-later
"""What all who look through the host's processes again and again go by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

_EVERY_S = 1.0
_REST = 50  # times as long as a look took: two parts in a hundred of a CPU at most

_Seen = TypeVar("_Seen")


def pause_s(took_s: float) -> float:
    """Until the next look, after one that took so long."""
    return max(_EVERY_S, _REST * took_s)


class SeenTwice(Generic[_Seen]):
    """Tells who is there at two looks in a row: a child that is about to call exec is not, nor one whose fork
    we were told of meanwhile.
    """

    def __init__(self) -> None:
        self._before: set[int] = set()

    def look_at(self, seen: Mapping[int, _Seen]) -> _Seen | None:
        """seen: by pid. One of those that were there before, too."""
        both = sorted(self._before & seen.keys())
        self._before = set(seen)
        return seen[both[0]] if both else None
