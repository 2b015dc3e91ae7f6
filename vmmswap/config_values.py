# SPDX-License-Identifier: GPL-2.0-or-later
"""The kinds of values that settings have: each reads a value's text, or raises ValueError with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable

from vmmswap.timespan import span_us

_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,254}|[0-9]{1,10}")
_SIZE = re.compile(r"[0-9]{1,15}[KMGT]?|[0-9]{1,2}%|100%")
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
INFINITY = "infinity"
SEGMENT_BYTES = 2 << 20  # engine/src/store/slot_name.h
_MAX_COUNT = (1 << 32) - 1
_MAX_BYTES = 1 << 62  # more than any disk has; the engine counts in 64 bits
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


def window(text: str) -> str:
    """Of so many bytes: a power of two, as pages are counted in blocks."""
    size(text)
    bytes_ = in_bytes(text, 0)
    if text.endswith("%") or not (bytes_ == 0 or (8 << 10 <= bytes_ <= 2 << 20 and bytes_.bit_count() == 1)):
        raise ValueError(f"{text!r} is neither 0 nor a power of two from 8K to 2M")
    return text


def is_nothing(size: str) -> bool:
    return bool(size) and not size.strip("0KMGT%")


def limit(text: str) -> str:
    """A size, or no limit."""
    return text if text == INFINITY else size(text)


def budget(text: str) -> str:
    """The same of what the store needs in whole segments."""
    limit(text)
    if is_nothing(text):
        raise ValueError(f"{text!r} lets nothing be written: for no disk tier say DiskTierMax=0")
    return tier_size(text)


def tier_size(text: str) -> str:
    """The same, or 0. A percentage is known only when a VM registers."""
    limit(text)
    if not text.endswith("%") and not is_nothing(text) and 0 < in_bytes(text, 0) < SEGMENT_BYTES:
        raise ValueError(f"{text!r} is less than one segment of the store, 2M")
    return text


def ram_tier_size(text: str) -> str:
    """The same, and a limit in any case."""
    size(text)
    return tier_size(text)


def in_bytes(text: str, total_bytes: int) -> int:
    """A size as vmmswap.conf has it, as bytes; a percentage is of total_bytes. 0 for no limit."""
    if text == INFINITY:
        return 0
    if text.endswith("%"):
        return total_bytes * int(text[:-1]) // 100
    digits = text.rstrip("KMGT")
    return min(int(digits or "0") << _UNITS[text[len(digits) :]], _MAX_BYTES)


def user(text: str) -> str:
    if not _USER.fullmatch(text):
        raise ValueError(f"{text!r} is neither a user's name nor a uid")
    return text
