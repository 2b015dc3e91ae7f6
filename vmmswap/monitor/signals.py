# SPDX-License-Identifier: GPL-2.0-or-later
"""The service manager's orders: they wait while nobody can carry them out, where they would end a monitor
that a guest waits for.
"""

from __future__ import annotations

import signal

STOP = (signal.SIGTERM, signal.SIGINT)
RESTART = signal.SIGUSR2
RELOAD = signal.SIGHUP
_ORDERS = {*STOP, RESTART, RELOAD}


def hold() -> None:
    """From here on they wait. Before threads are started, which inherit that."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ORDERS)


def release() -> None:
    """Those that have come are delivered now, all others when they come. For the main thread."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ORDERS)
