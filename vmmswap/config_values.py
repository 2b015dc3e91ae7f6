# SPDX-License-Identifier: GPL-2.0-or-later
"""The kinds of values that settings have: each reads a value's text, or raises ValueError with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable

from vmmswap.timespan import span_us

_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,254}|[0-9]{1,10}")
_SIZE = re.compile(r"[0-9]{1,15}[KMGT]?|[0-9]{1,2}%|100%")
_MAX_COUNT = (1 << 32) - 1
_DAY_US = 86_400_000_000


def count(least: int, most: int = _MAX_COUNT) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise ValueError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def seconds(text: str) -> float:
    value_us = span_us(text)
    if not 0 < value_us <= _DAY_US:
        raise ValueError(f"{text!r} is not a time span above 0 and up to a day")
    return value_us / 1e6


def seconds_or_never(text: str) -> float:
    return 0.0 if text == "infinity" or span_us(text) == 0 else seconds(text)


def span(unit_us: int, most: int) -> Callable[[str], int]:
    """A time span, as a whole number of units of so many microseconds."""

    def parse(text: str) -> int:
        units = round(span_us(text, unit_us) / unit_us)
        if not 0 <= units <= most:
            raise ValueError(f"{text!r} is not a time span up to {most * unit_us / 1e6:g} s")
        return units

    return parse


def one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text

    return parse


def absolute_path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path")
    return text


def size(text: str) -> str:
    if not _SIZE.fullmatch(text):
        raise ValueError(f"{text!r} is not a size: give bytes, 512M, 10G or 20%")
    return text


def is_nothing(size: str) -> bool:
    return bool(size) and not size.strip("0KMGT%")


def user(text: str) -> str:
    if not _USER.fullmatch(text):
        raise ValueError(f"{text!r} is neither a user's name nor a uid")
    return text
