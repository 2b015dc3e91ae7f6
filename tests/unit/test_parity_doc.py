# SPDX-License-Identifier: GPL-2.0-or-later
"""Every test that docs/parity.md and docs/live-swap-out.md name exists; every race is in the table."""

import functools
import re
from pathlib import Path

import pytest

from tests.support import documents

ROOT = Path(__file__).parents[2]
PARITY = ROOT / "docs" / "parity.md"
ESSAY = ROOT / "docs" / "live-swap-out.md"
SEED_TESTS = 33

C_NAME = re.compile(r"`([a-z_]+)::([a-z0-9_]+)`")
PYTHON_NAME = re.compile(r"`(test_\w+\.py)::(\w+)`")


@functools.cache
def c_tests(room: str) -> set[str]:
    source = ROOT / "engine" / "tests" / f"test_{room}.c"
    return set(re.findall(r"^TEST\((\w+)\)", source.read_text(), re.MULTILINE)) if source.exists() else set()


@functools.cache
def python_tests(file_name: str) -> set[str]:
    return {
        name
        for path in (ROOT / "tests").rglob(file_name)
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }


@pytest.mark.parametrize("page", [PARITY, ESSAY], ids=lambda page: page.name)
def test_every_named_test_exists(page):
    text = page.read_text()
    named = C_NAME.findall(text) + PYTHON_NAME.findall(text)
    missing = [
        f"{where}::{name}"
        for where, name in named
        if name not in (python_tests(where) if where.endswith(".py") else c_tests(where))
    ]
    assert len(named) > 20
    assert missing == []


def test_each_of_the_seeds_tests_has_its_row():
    section = documents.section(PARITY.read_text(), "## The seed's tests")
    rows = [item.split(": ", 1) for item in documents.items(section)]
    assert len({theirs for theirs, _ in rows}) == len(rows) == SEED_TESTS
    assert [theirs for theirs, ours in rows if "::" not in ours] == []


def test_every_race_is_in_the_table():
    named = {name for room, name in C_NAME.findall(ESSAY.read_text()) if room == "races"}
    assert c_tests("races") - named == set()
