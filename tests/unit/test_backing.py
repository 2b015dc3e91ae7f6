# SPDX-License-Identifier: GPL-2.0-or-later
"""What kind of memory backs a guest is asked in one room of the engine, and in one of the monitor."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.test_layers import ROOT, SOURCES

# A kind by its name: its backing or its constructor, a field that says so, or what the page map keeps of it.
NAMES_A_KIND_IN_C = re.compile(
    r"\bbacking_(?:memfd|snapshot|private)\b|\bregion_of_(?:memfd|snapshot|private)\b"
    r"|(?:->|\.)(?:snapshot|is_private|snapshot_\w+)\b"
)
ALLOWED_IN_C = {
    "vm/backing.h": {
        "backing_memfd",
        "backing_snapshot",
        "backing_private",
        "region_of_memfd",
        "region_of_snapshot",
        "region_of_private",
    },
    "vm/backing_memfd.c": {"backing_memfd", "region_of_memfd"},
    "vm/backing_private.c": {"backing_private", "region_of_private"},
    "vm/backing_snapshot.c": {"backing_snapshot", "region_of_snapshot"},
    # the doors by which memory comes in
    "engine_regions.c": {"region_of_memfd", "region_of_snapshot", "region_of_private", "->snapshot_bytes"},
    # which store: the snapshot's file is one
    "engine.c": {"->snapshot", "->snapshot_bytes", "->snapshot_mtime_ns"},
    # a mapping's MAP_PRIVATE, as the kernel shows it: of any process, and of any file
    "linux/mappers.c": {"->is_private", ".is_private"},
}

NAMES_A_KIND_IN_PYTHON = re.compile(
    r"\.snapshot\b|\bsnapshot=|\bis_snapshot\b|\b(?:isinstance|type)\(.*\b(?:Memfd|Snapshot)\b|\bis_private\b"
)
ALLOWED_IN_PYTHON = {
    "monitor/backing.py": {".snapshot", "snapshot="},
    "monitor/registration.py": {"snapshot="},  # the door: Firecracker's hand-off
    "monitor/register.py": {".snapshot"},  # what was given there is the store
    "engine/c_config.py": {".snapshot"},  # handed on to the engine in C
    "engine/engine.py": {".snapshot"},  # which says so
    "engine/mappers.py": {"is_private"},  # a mapping's MAP_PRIVATE, as the kernel shows it
    "monitor/mappers/coverage.py": {"is_private"},  # the same
    "attach/other_mappers.py": {"is_private"},  # the same
    "attach/attach.py": {"is_private"},  # the door: what is found in a VMM
    "attach/memory.py": {"is_private"},
}
PACKAGE = ROOT / "vmmswap"


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.[ch]")), ids=lambda path: path.name)
def test_the_engine_asks_for_a_kind_in_its_room(path: Path) -> None:
    allowed = ALLOWED_IN_C.get(str(path.relative_to(SOURCES)), set())
    assert set(NAMES_A_KIND_IN_C.findall(path.read_text())) == allowed


@pytest.mark.parametrize(
    "path",
    sorted(path for folder in ("monitor", "engine", "attach") for path in (PACKAGE / folder).rglob("*.py")),
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_the_monitor_asks_for_a_kind_in_its_room(path: Path) -> None:
    allowed = ALLOWED_IN_PYTHON.get(str(path.relative_to(PACKAGE)), set())
    assert {found.strip() for found in NAMES_A_KIND_IN_PYTHON.findall(path.read_text())} == allowed


def test_a_kind_asked_for_elsewhere_is_found() -> None:
    assert NAMES_A_KIND_IN_C.search("if (vm->snapshot)")
    assert NAMES_A_KIND_IN_C.search("region && !region->is_private")
    assert NAMES_A_KIND_IN_C.search("if (region->backing == &backing_memfd)")
    assert NAMES_A_KIND_IN_PYTHON.search("if self.vm.manifest.snapshot:")
    assert NAMES_A_KIND_IN_PYTHON.search("isinstance(vm.backing, Snapshot)")
    assert not NAMES_A_KIND_IN_PYTHON.search("from vmmswap.monitor import backing, snapshot")
