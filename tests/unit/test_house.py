# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for every file of the product: its size, and that no code decides by the text of a message."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 450
PYTHON = sorted(ROOT.glob("vmmswap/**/*.py"))
SOURCES = sorted(
    [
        *PYTHON,
        *(
            path
            for folder in ("engine/src", "engine/planted", "guest")
            for path in ROOT.glob(f"{folder}/**/*.[chS]")
        ),
    ]
)
_TEXTS = ("message", "reason", "strerror", "explanation")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_has_one_job(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: split it along its jobs"


def decisions_by_text(source: str) -> Iterator[int]:
    """Lines that compare the text of an error or a message with a text of their own."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare(left=left, comparators=[right]):
                if (_is_text(left) and _is_constant(right)) or (_is_constant(left) and _is_text(right)):
                    yield node.lineno
            case ast.Call(func=ast.Attribute(value=value, attr="startswith" | "endswith" | "find" | "index")):
                if _is_text(value):
                    yield node.lineno
            case ast.Call(func=ast.Attribute(value=ast.Name("re"))) if any(map(_is_text, node.args)):
                yield node.lineno


def _is_text(node: ast.expr) -> bool:
    match node:
        case ast.Attribute(attr=name):
            return name in _TEXTS
        case ast.Call(func=ast.Name("str"), args=[ast.Name(name)]):
            return name in ("error", "why", "refusal")
    return False


def _is_constant(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=str(text)):
            return bool(text)  # whether there is any is no matter of words
        case ast.Tuple(elts=items) | ast.Set(elts=items) | ast.List(elts=items):
            return any(map(_is_constant, items))
    return False


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_decides_by_the_text_of_a_message(path: Path) -> None:
    assert list(decisions_by_text(path.read_text())) == [], "give the error a class, or a field"


@pytest.mark.parametrize(
    "decision",
    [
        '"mapped at" in item.reason',
        'error.message == "gone"',
        'error.message.startswith("cannot")',
        'error.strerror in ("No such file or directory",)',
        're.search("busy", error.message)',
        'str(error) != "busy"',
    ],
)
def test_a_decision_by_text_is_found(decision: str) -> None:
    assert list(decisions_by_text(decision)) == [1]


def test_what_is_no_decision_by_text_is_not_found() -> None:
    assert list(decisions_by_text('error.message != last; item.reason == ""; "x" in item.name')) == []
