# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's error codes and the errors that callers see are one table."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from vmmswap.errors import BY_ERRNO, InternalError, from_errno

SOURCES = Path(__file__).resolve().parents[2] / "engine/src"


def named_codes() -> set[str]:
    """Each errno that a source of the engine gives to error_set() by its name."""
    texts = [path.read_text() for path in SOURCES.rglob("*.c")]
    return {name for text in texts for name in re.findall(r"error_set\(\s*[^,]+,\s*(E[A-Z0-9]+)\b", text)}


def test_the_sources_name_codes() -> None:
    assert {"ENOSPC", "EBUSY", "EPROTO", "ETIMEDOUT"} <= named_codes()


@pytest.mark.parametrize("name", sorted(named_codes()))
def test_no_error_of_the_engine_looks_like_a_bug_of_ours(name: str) -> None:
    assert getattr(errno, name) in BY_ERRNO


def test_an_unknown_code_is_a_bug_of_ours_and_keeps_its_message() -> None:
    error = from_errno(errno.EDOM, "what was wrong")
    assert isinstance(error, InternalError)
    assert error.message == "what was wrong"
