# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that follow from tables in the code are what `make generate` writes."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/generate"


def generated() -> dict[Path, str]:
    loader = importlib.machinery.SourceFileLoader("generate", str(TOOL))
    spec = importlib.util.spec_from_loader("generate", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    found: dict[Path, str] = module.generated()
    return found


@pytest.mark.parametrize("path", generated(), ids=lambda path: path.name)
def test_a_file_is_what_its_table_says(path: Path) -> None:
    assert path.read_text() == generated()[path], "run `make generate`"
