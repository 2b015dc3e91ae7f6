# SPDX-License-Identifier: GPL-2.0-or-later
"""Formats pages of guest memory for messages and for fields of journal entries."""

from __future__ import annotations

from collections.abc import Callable

from vmmswap.engine import Pages

_RANGES_IN_MESSAGE = 8


def described(pages: Pages, where: Callable[[int], str]) -> str:
    """Format the first few ranges. where(page_idx): describes a page for people."""
    shown = pages.ranges[:_RANGES_IN_MESSAGE]
    places = [f"{item.pages} from {where(item.page_idx)}" for item in shown]
    if rest := pages.pages - sum(item.pages for item in shown):
        places.append(f"and {rest} more")
    return "; ".join(places)


def as_field(pages: Pages) -> str:
    """Format all ranges that were noted, each as page+pages."""
    return " ".join(f"{item.page_idx}+{item.pages}" for item in pages.ranges)
