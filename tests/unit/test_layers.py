# SPDX-License-Identifier: GPL-2.0-or-later
"""Each folder uses only what stands below it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "engine/src"
TOP = "engine"  # files in no folder


def engine_floors() -> dict[str, int]:
    lines = re.findall(r"^(\d+)\. `(\w+)`: ", (SOURCES / "README.md").read_text(), re.MULTILINE)
    return {folder: int(floor) for floor, folder in lines}


def folder_of(path: Path) -> str:
    parent = path.relative_to(SOURCES).parent
    return TOP if parent == Path() else str(parent)


def test_every_folder_of_the_engine_has_a_floor() -> None:
    assert set(engine_floors()) == {folder_of(path) for path in SOURCES.rglob("*.[ch]")}


def forbidden_includes(text: str, folder: str, floors: dict[str, int]) -> list[str]:
    used = {
        included: Path(included).parent.name or TOP for included in re.findall(r'#include "([^"]+)"', text)
    }
    return [
        included for included, other in used.items() if other != folder and floors[other] >= floors[folder]
    ]


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.[ch]")), ids=lambda path: path.name)
def test_a_file_includes_nothing_from_above(path: Path) -> None:
    assert forbidden_includes(path.read_text(), folder_of(path), engine_floors()) == []


def test_an_arrow_upwards_is_found() -> None:
    floors = engine_floors()
    assert forbidden_includes('#include "vm/vm.h"\n#include "base/error.h"', "store", floors) == ["vm/vm.h"]
    assert forbidden_includes('#include "jobs/swapper.h"', "serve", floors) == ["jobs/swapper.h"]


# A page's word is changed by its room alone: nobody else gets at it, counts what it says, or builds one.
PAGE_ROOM = {"vm/page.c", "vm/page.h", "vm/page_map.c", "vm/page_map.h"}
CHANGES_A_PAGE = re.compile(
    r"page_map_word\(|PAGE_(?:STATE|GENERATION)_\w+|"
    r"atomic_(?!load)\w+\(&[\w.>-]*\b(?:stored|poisoned|kept)_pages\b"
)


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.[ch]")), ids=lambda path: path.name)
def test_only_its_room_changes_a_page(path: Path) -> None:
    if str(path.relative_to(SOURCES)) not in PAGE_ROOM:
        assert CHANGES_A_PAGE.findall(path.read_text()) == []


def test_a_change_elsewhere_is_found() -> None:
    assert CHANGES_A_PAGE.search("atomic_store(page_map_word(vm->map, idx), word);")
    assert CHANGES_A_PAGE.search("word | (uint64_t)PAGE_KEPT << PAGE_STATE_SHIFT")
    assert CHANGES_A_PAGE.search("atomic_fetch_sub(&attempt->vm->stored_pages, 1);")
    assert not CHANGES_A_PAGE.search("atomic_load(&vm->stored_pages)")
