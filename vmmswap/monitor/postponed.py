# SPDX-License-Identifier: GPL-2.0-or-later
"""Orders of the service manager's that come while a VM is on its way to being served.

A stop or a restart that found no VM yet would end the monitor, and with it a guest whose memory is out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


class Postponed:
    """One order, until the VM is served or is known not to come."""

    def __init__(self) -> None:
        self._is_on = False
        self._action: Callable[[], None] | None = None

    @contextlib.contextmanager
    def until_served(self) -> Iterator[None]:
        """Inside, orders are postponed; at its end what was postponed is done."""
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False
            action, self._action = self._action, None
            if action is not None:
                action()

    def postpone(self, action: Callable[[], None], *, is_first: bool) -> bool:
        """True if a VM is on its way: the action is done later. is_first: instead of one that was postponed
        before; else that one stands.
        """
        if self._is_on and (is_first or self._action is None):
            self._action = action
        return self._is_on
