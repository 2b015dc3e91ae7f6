# SPDX-License-Identifier: GPL-2.0-or-later
"""Each folder uses only what stands below it."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Container
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


PYTHON = ROOT / "vmmswap"
WITHOUT_ENGINE = ("bus", "host", "ctl")


@functools.cache
def python_floors() -> dict[str, int]:
    lines = re.findall(r"^(\d+)\. `(\w+)`: ", (PYTHON / "README.md").read_text(), re.MULTILINE)
    return {folder: int(floor) for floor, folder in lines}


@functools.cache
def modules() -> dict[str, Path]:
    """Each module's file, by its name."""
    return {_name_of(path): path for path in PYTHON.rglob("*.py")}


def _name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name: str) -> str:
    parts = name.split(".")
    is_folder = len(parts) > 1 and (PYTHON / parts[1]).is_dir()
    return parts[1] if is_folder else "vmmswap"


def imports_of(source: str, known: Container[str]) -> set[str]:
    """The modules of ours that a source imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vmmswap"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in known else str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("vmmswap")}
    return {name for name in found if name in known}


@functools.cache
def import_graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports_of(path.read_text(), known) for name, path in known.items()}


def forbidden_imports(name: str, imported: set[str], floors: dict[str, int]) -> set[str]:
    own = room_of(name)
    return {other for other in imported if room_of(other) != own and floors[room_of(other)] >= floors[own]}


def reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for other in graph[waiting.pop()] - found:
            found.add(other)
            waiting.append(other)
    return found


def test_every_python_folder_has_a_floor() -> None:
    assert set(python_floors()) == {room_of(name) for name in modules()}


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_nothing_from_above(name: str) -> None:
    assert forbidden_imports(name, import_graph()[name], python_floors()) == set()


@pytest.mark.parametrize("room", WITHOUT_ENGINE)
def test_neither_engine_nor_monitor_is_reached_from(room: str) -> None:
    graph = import_graph()
    reached = {other for name in graph if room_of(name) == room for other in reachable(name, graph)}
    assert [name for name in sorted(reached) if room_of(name) in ("engine", "monitor")] == []


def test_an_import_upwards_is_found() -> None:
    known = modules()
    imported = imports_of("from vmmswap.monitor import vm\nimport vmmswap.errors", known)
    assert imported == {"vmmswap.monitor.vm", "vmmswap.errors"}
    assert forbidden_imports("vmmswap.handoff.maps", imported, python_floors()) == {"vmmswap.monitor.vm"}
    assert forbidden_imports("vmmswap.ctl.main", {"vmmswap.host.host"}, python_floors()) != set()
    graph = {"a": {"b"}, "b": {"c"}, "c": set()}
    assert reachable("a", graph) == {"b", "c"}
