# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages to the service manager (sd_notify), without ever waiting for it.

Of messages that say how things are now the latest alone waits, so what waits is as bounded as the fds that
there are to be stored; none is dropped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from vmmswap.later import asyncio
from vmmswap.outbox import DatagramOutbox, Message


class Notifier(DatagramOutbox):
    """To the manager at NOTIFY_SOCKET; without one nothing happens."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._is_there = bool(address)
        super().__init__(address, None)

    def notify(
        self,
        text: str,
        fds: Sequence[int] = (),
        *,
        latest: str = "",
        on_sent: Callable[[], None] | None = None,
    ) -> Message:
        """As send()."""
        if not self._is_there:
            return Message(b"", latest, on_sent)
        return self.send(text.encode(), fds, latest=latest, on_sent=on_sent)


def watchdog_interval_s() -> float | None:
    """How often to say that we are alive: thrice as often as asked for. None: nobody asks."""
    text = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not text.isdigit() or int(text) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(text) / 3e6


def feed_once(manager: Notifier) -> None:
    """Say that we are alive."""
    manager.notify("WATCHDOG=1", latest="WATCHDOG")


async def feed_watchdog(manager: Notifier) -> None:
    """For ever, if the service manager watches us."""
    interval_s = watchdog_interval_s()
    while interval_s:
        feed_once(manager)
        await asyncio.sleep(interval_s)
