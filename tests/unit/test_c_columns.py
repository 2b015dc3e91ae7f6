# SPDX-License-Identifier: GPL-2.0-or-later
"""C has at most 110 columns, but for texts in quotes and comments that are laid out by hand."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools/wrap-comments"
FOLDERS = ("engine", "guest", "benchmarks", "docs", "tests")


def _load() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("wrap_comments", str(TOOL))
    spec = importlib.util.spec_from_loader("wrap_comments", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


wrap_comments = _load()


def files() -> list[Path]:
    found = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.[ch]"))
    return sorted(path for path in found if "build" not in path.relative_to(ROOT).parts)


def too_long(text: str) -> list[str]:
    return [
        line
        for line in text.splitlines()
        if wrap_comments.width(line) > wrap_comments.COLUMNS
        and '"' not in line
        and not wrap_comments.is_laid_out(line.strip().removeprefix("*"))
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_line_is_too_long(folder: str) -> None:
    for path in (path for path in files() if path.relative_to(ROOT).parts[0] == folder):
        text = path.read_text()
        assert too_long(text) == [], path
        assert wrap_comments.wrapped(text) == text, f"{path}: run `make format`"


WORDS = " ".join(f"word{number}" for number in range(30))


@pytest.mark.parametrize("indent", ["", "\t", "\t\t"])
def test_a_paragraph_is_filled(indent: str) -> None:
    text = f"{indent}/* {WORDS} */\n{indent}code();\n"
    done = wrap_comments.wrapped(text)
    assert done.replace(" * ", "").split() == text.split()
    assert done.endswith(f" */\n{indent}code();\n")
    assert too_long(text) != [] == too_long(done)
    assert wrap_comments.wrapped(done) == done


def test_only_the_paragraph_that_is_too_long_is_filled() -> None:
    table = " *   state    meaning\n *   STORED   it is out\n"
    kept = f" * short\n * lines\n *\n{table} *\n"
    item = f" * - {WORDS}\n * - another\n"
    done = wrap_comments.wrapped(f"/* Title.\n *\n{kept}{item} */\n")
    assert done.startswith(f"/* Title.\n *\n{kept} * - word0 ")
    assert done.endswith("\n * - another\n */\n")
    assert "\n *   word" in done
    assert too_long(done) == []


def test_nothing_else_is_touched() -> None:
    text = f'\tputs("{WORDS}");\n\tcode(); /* {WORDS} */\n'
    assert wrap_comments.wrapped(text) == text
