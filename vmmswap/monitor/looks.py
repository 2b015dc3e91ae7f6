# SPDX-License-Identifier: GPL-2.0-or-later
"""Shared by everything that looks through the host's processes again and again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

_EVERY_S = 1.0
REST = 50  # times as long as a look took: two parts in a hundred of a CPU at most

_Seen = TypeVar("_Seen")


def pause_s(took_s: float) -> float:
    """The pause until the next look, after one that took so long."""
    return max(_EVERY_S, REST * took_s)


class SeenTwice(Generic[_Seen]):
    """Finds processes that two looks in a row have seen. A child that is about to call exec is seen only
    once, and so is one whose fork was reported meanwhile.
    """

    def __init__(self) -> None:
        self._before: set[int] = set()

    def look_at(self, seen: Mapping[int, _Seen]) -> _Seen | None:
        """seen: by pid. Returns one of those that the last look saw too."""
        both = sorted(self._before & seen.keys())
        self._before = set(seen)
        return seen[both[0]] if both else None
