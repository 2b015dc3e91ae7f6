# SPDX-License-Identifier: GPL-2.0-or-later
"""Regions of a process's memory, as people write them."""

from __future__ import annotations

import re

from vmmswap.errors import InvalidRegionError

_REGION = re.compile(r"(?:0x)?([0-9a-fA-F]{1,16})-(?:0x)?([0-9a-fA-F]{1,16})")


def parse_region(text: str) -> tuple[int, int]:
    """A region as people write it, START-END in hexadecimal, as in /proc/PID/maps. InvalidRegionError."""
    match = _REGION.fullmatch(text)
    if not match:
        raise InvalidRegionError(f"region {text!r} is not START-END in hexadecimal, as in /proc/PID/maps")
    return int(match[1], 16), int(match[2], 16)
