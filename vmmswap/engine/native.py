# SPDX-License-Identifier: GPL-2.0-or-later
"""The C library, with failpoints where VMMSWAP_ENGINE=failpoints asks for them, and its texts."""

from __future__ import annotations

import os
from typing import Any

from vmmswap.errors import from_errno

if os.environ.get("VMMSWAP_ENGINE") == "failpoints":
    from vmmswap._engine_failpoints import ffi, lib
else:
    from vmmswap._engine import ffi, lib

__all__ = ["checked", "ffi", "lib", "text_of"]


def text_of(chars: Any) -> str:  # noqa: ANN401 - cffi's objects have no static types
    return bytes(ffi.string(chars)).decode(errors="replace")


def checked(function: Any, *arguments: Any) -> int:  # noqa: ANN401 - cffi's objects have no static types
    """Call it; its error as what it is. Each call has its own: some come from other threads."""
    error = ffi.new("struct error *")
    rc = function(*arguments, error)
    if rc < 0:
        raise from_errno(-rc, text_of(error.message))
    return int(rc)
