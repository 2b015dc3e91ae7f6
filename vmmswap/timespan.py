# SPDX-License-Identifier: GPL-2.0-or-later
"""Time spans as systemd.time(7) writes them: 10, 10s, 1min 30s, 250ms, 2h."""

from __future__ import annotations

import re

_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
_PART = re.compile(rf"({_NUMBER})(?![0-9.])\s*([A-Za-zµμ]*)\s*")
_US = 1
_MS = 1000
_S = 1_000_000
_MIN = 60 * _S
_H = 60 * _MIN
_D = 24 * _H
_WORDS: dict[int, tuple[str, ...]] = {
    _US: ("usec", "us", "µs", "μs"),
    _MS: ("msec", "ms"),
    _S: ("seconds", "second", "sec", "s"),
    _MIN: ("minutes", "minute", "min", "m"),
    _H: ("hours", "hour", "hr", "h"),
    _D: ("days", "day", "d"),
    7 * _D: ("weeks", "week", "w"),
}
_UNITS = {word: unit_us for unit_us, words in _WORDS.items() for word in words}


def span_us(text: str, unit_us: int = _S) -> float:
    """Microseconds of a time span; ValueError if it is none. unit_us: what a number without a unit counts."""
    text = text.strip()
    total_us, end = 0.0, 0
    for match in _PART.finditer(text):
        if match.start() != end:
            break
        unit = match[2]
        if unit and unit not in _UNITS:
            break
        total_us += float(match[1]) * (_UNITS[unit] if unit else unit_us)
        end = match.end()
    if not end or end != len(text):
        raise ValueError(f"{text!r} is not a time span: write it as 10, 10s, 500ms or 1min 30s")
    return total_us
