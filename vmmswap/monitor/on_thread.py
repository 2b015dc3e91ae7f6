# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes on a thread what somebody must close: a disk may be slow, and the waiting task may be cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

_Made = TypeVar("_Made")


async def made_on_thread(make: Callable[[], _Made], close: Callable[[_Made], None]) -> _Made:
    """Return what make() makes. If cancelled before that, close() gets it, on a thread too."""
    making = asyncio.ensure_future(asyncio.to_thread(make))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        making.add_done_callback(partial(_discard, close))
        raise


def _discard(close: Callable[[_Made], None], making: asyncio.Future[_Made]) -> None:
    if not making.cancelled() and making.exception() is None:
        asyncio.get_running_loop().run_in_executor(None, close, making.result())
