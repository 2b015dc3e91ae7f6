# SPDX-License-Identifier: GPL-2.0-or-later
"""Markdown has at most 120 columns, but for code, tables that a program writes, and single long names."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/wrap-docs"


def _load() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("wrap_docs", str(TOOL))
    spec = importlib.util.spec_from_loader("wrap_docs", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


wrap_docs = _load()


def too_long(text: str) -> Iterator[str]:
    is_generated = is_fenced = False
    for line in text.splitlines():
        is_fenced ^= line.lstrip().startswith("```")
        is_generated = wrap_docs.is_generated(line) or (is_generated and line.startswith("|"))
        is_one_word = len(line.split()) == 1
        if len(line) > wrap_docs.COLUMNS and not (is_generated or is_fenced or is_one_word):
            yield line


@pytest.mark.parametrize("path", wrap_docs.documents(), ids=lambda path: path.name)
def test_no_line_is_too_long(path: Path) -> None:
    text = path.read_text()
    assert list(too_long(text)) == [], "run `make format`; make a list of a table whose cells are sentences"
    assert wrap_docs.wrapped(text) == text, "run `make format`"


def test_a_paragraph_is_filled_and_nothing_else() -> None:
    words = " ".join(f"word{number}" for number in range(30))
    kept = f"    {words} {words}\n\n| {words} | {words} |\n\nshort\nlines\n"
    code = "`" + "a b " * 20 + "c`"
    text = f"# Title\n\n- {words} 3. {code}\n\n{kept}"
    done = wrap_docs.wrapped(text)
    assert done.split() == text.split()
    assert code in done
    assert done.endswith(kept)
    assert [line for line in done.splitlines() if line.lstrip().startswith("3.")] == []
    assert list(too_long(text)) != []
    assert wrap_docs.wrapped(done) == done
