# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends the thread of a VMM that moves its private memory, as a debugger could: its monitor is not told."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.attach import DEADLINE_S
from vmmswap.attach.mailbox import Mailbox


def end_mover(pid: int) -> None:
    path = next(item for item in Path(f"/proc/{pid}/fd").iterdir() if "mailbox" in str(item.readlink()))
    fd = os.open(path, os.O_RDWR)
    try:
        with Mailbox(fd) as view:
            thread = Path(f"/proc/{pid}/task/{view.box.tid}")
            _await(lambda: view.box.state == 0)
            view.ask_to_leave()
            _await(lambda: not thread.exists())
    finally:
        os.close(fd)


def _await(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.002)
