# SPDX-License-Identifier: GPL-2.0-or-later
"""The failpoints of the engine that is built for tests."""

from __future__ import annotations

import os

from vmmswap.engine.native import ffi, lib, text_of
from vmmswap.errors import InternalError


def failpoint_names() -> list[str]:
    """Every failpoint that the engine knows."""
    names: list[str] = []
    while (name := lib.failpoint_name(len(names))) != ffi.NULL:
        names.append(text_of(name))
    return names


def arm_failpoints(text: str) -> None:
    """Arm failpoints (engine/src/base/failpoint.h has the syntax); only in the engine built for tests."""
    rc = lib.failpoint_arm(text.encode())
    if rc < 0:
        raise InternalError(f"cannot arm failpoints {text!r}: {os.strerror(-rc)}")


def failpoint_hits(name: str) -> int:
    """How often a failpoint was reached."""
    return int(lib.failpoint_hits(name.encode()))
