# SPDX-License-Identifier: GPL-2.0-or-later
"""Postpones orders of the service manager that come while a VM is about to be served. A stop or a restart
that finds no VM yet would end the monitor, and with it a guest whose memory is out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


class Postponed:
    """Holds one order until the VM is served or is known not to come."""

    def __init__(self) -> None:
        self._is_on = False
        self._action: Callable[[], None] | None = None

    @contextlib.contextmanager
    def until_served(self) -> Iterator[None]:
        """Inside, orders are postponed; at the end the postponed one is carried out."""
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False
            action, self._action = self._action, None
            if action is not None:
                action()

    def postpone(self, action: Callable[[], None], *, is_first: bool) -> bool:
        """True if a VM is on its way; then the action is done later. is_first: replace an order that was
        postponed before; otherwise that one stays.
        """
        if self._is_on and (is_first or self._action is None):
            self._action = action
        return self._is_on
