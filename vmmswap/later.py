# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules for what a successor imports before it serves page faults: loaded when they are first used.

A guest waits for every module that is loaded until then, and asyncio with what it brings takes longer than
the interpreter itself. importlib.util.LazyLoader does not do it: the second `import` of a module loads it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["asyncio", "module_later"]


class _Later:
    """Stands for a module."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:  # noqa: ANN401  of the module
        return getattr(importlib.import_module(self._name), attribute)


def module_later(name: str) -> Any:  # noqa: ANN401  as `import` gives
    """The module of that name, for the branch that a type checker does not take."""
    return _Later(name)


if TYPE_CHECKING:
    import asyncio
else:
    asyncio = module_later("asyncio")
