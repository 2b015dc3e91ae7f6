# SPDX-License-Identifier: GPL-2.0-or-later
"""What messages must not have in them: an OSError as it stands reads "[Errno 2] No such file"."""

import ast
import builtins
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "vmmswap"


def is_os_error(node: ast.expr | None) -> bool:
    match node:
        case ast.Tuple(elts=items):
            return any(is_os_error(item) for item in items)
        case ast.Name(id=name):
            known = getattr(builtins, name, None)
            return isinstance(known, type) and issubclass(known, OSError)
    return False


def raw_uses(handler: ast.ExceptHandler) -> list[int]:
    """The lines where a handler of OSError puts it into a text as it stands."""
    lines = []
    for node in ast.walk(handler):
        values: list[ast.expr] = []
        if isinstance(node, ast.FormattedValue) and node.conversion == -1:
            values = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if isinstance(node.func.value, ast.Name) and node.func.value.id in ("log", "_log"):
                values = list(node.args)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str":
            values = list(node.args)
        lines += [
            value.lineno for value in values if isinstance(value, ast.Name) and value.id == handler.name
        ]
    return lines


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_errno_is_shown_to_people(path: Path) -> None:
    found = [
        line
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and is_os_error(node.type)
        for line in raw_uses(node)
    ]
    assert found == [], f"{path}: use reason_of() in these lines"


def test_it_is_found() -> None:
    text = (
        "try: f()\nexcept (ValueError, OSError) as error:\n    log.warning('%s', error)\n    g(f'{error}')\n"
    )
    [handler] = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ExceptHandler)]
    assert is_os_error(handler.type)
    assert raw_uses(handler) == [3, 4]
