# SPDX-License-Identifier: GPL-2.0-or-later
"""Every promise of docs/reliability.md and every boundary of docs/security.md names tests that exist."""

import re
from pathlib import Path

import pytest

from tests.support.documents import items, section

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()
NAMED = sorted(set(re.findall(r"`([\w./]+)::(\w+)`", TEXT + SECURITY)))


@pytest.mark.parametrize(("text", "heading"), [(TEXT, "## Promised"), (SECURITY, "## The boundaries")])
def test_each_promise_names_a_test(text: str, heading: str):
    promises = items(section(text, heading))
    assert len(promises) > 10
    assert [promise for promise in promises if "::" not in promise.partition(" Shown by ")[2]] == []


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[f"{path}::{name}" for path, name in NAMED])
def test_a_named_test_exists(path: str, name: str):
    source = (ROOT / path).read_text()
    pattern = rf"^TEST\({name}\)" if path.endswith(".c") else rf"^(async )?def {name}\("
    assert re.search(pattern, source, re.MULTILINE), f"{path} has no test {name}"
