# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests read in the documentation: sections, and lists whose items are promises, keys or errors."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def read(name: str) -> str:
    return (ROOT / name).read_text()


def section(text: str, heading: str) -> str:
    """What stands below a heading such as `## Promised`, up to the next one of its level or above."""
    level = heading.split(maxsplit=1)[0]
    pattern = rf"^{re.escape(heading)}[^\n]*\n(.*?)(?=^#{{1,{len(level)}}} |\Z)"
    found = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no heading {heading!r}"
    return found[1]


def items(text: str) -> list[str]:
    """The items of all lists in there, each on one line, nested items with the one that they belong to."""
    found = re.findall(r"^- (.*(?:\n +\S.*)*)", text, re.MULTILINE)
    return [re.sub(r"\s+", " ", item) for item in found]


def item_key(item: str) -> str:
    """What an item is about: all before its colon, without the marks around it."""
    found = re.match(r"\*\*(.+?)\*\*:|(`[^`]+`)", item)
    assert found, f"this item begins with neither **words** nor `code`: {item}"
    return (found[1] or found[2]).strip("`")
