# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports to the service manager: ready, status, alive, stopping. Does nothing without one."""

from __future__ import annotations

import contextlib
import functools
import logging
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

from vmmswap.later import asyncio
from vmmswap.notify import Notifier, feed_once, watchdog_interval_s

_log = logging.getLogger("vmmswap.service")

_NO_CORE = 1
_EXTEND_S = 10.0
_EXTEND_EVERY_S = 3.0
_EXTEND_UNLESS_TOLD_S = 1.0  # a stop whose limit is short may come meanwhile


@functools.cache
def manager() -> Notifier:
    """The service manager that has started us, if one has."""
    return Notifier()


def notify(line: str, *, latest: str = "") -> None:
    """Send a line to the service manager. Continue if it does not take it."""
    manager().notify(line.replace("\n", " "), latest=latest)


def status(text: str) -> None:
    """The line that `systemctl status` shows."""
    notify(f"STATUS={text}", latest="STATUS")


def ask_for_time() -> None:
    """A stop may take as long as memory is out, and a start as long as it takes to read a large page map."""
    notify(f"EXTEND_TIMEOUT_USEC={round(_EXTEND_S * 1e6)}", latest="EXTEND")


async def extend_time() -> None:
    """For ever."""
    while True:
        ask_for_time()
        await asyncio.sleep(_EXTEND_EVERY_S)


@contextlib.contextmanager
def asking_for_time() -> Iterator[None]:
    """Inside, where no event loop runs yet, a thread asks for time and says that we are alive."""
    ended = threading.Event()
    thread = threading.Thread(target=_ask_until, args=(ended,), name="start", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _ask_until(ended: threading.Event) -> None:
    watchdog_s = watchdog_interval_s()
    pause_s = min(watchdog_s or _EXTEND_UNLESS_TOLD_S, _EXTEND_UNLESS_TOLD_S)
    while not ended.wait(pause_s):
        ask_for_time()
        if watchdog_s:
            feed_once(manager())


class OomVictim:
    """Choose if the kernel kills this process before others of the unit's kind when memory is short.

    A process may raise its oom_score_adj and return to the service manager's value (fs/proc/base.c: only a
    lower one needs CAP_SYS_RESOURCE).
    """

    _FILE = Path("/proc/self/oom_score_adj")

    def __init__(self) -> None:
        self._given = self._FILE.read_text()

    def first(self) -> None:
        """Be killed before all monitors that serve a guest."""
        self._write("500")

    def last(self) -> None:
        """Return to the service manager's value."""
        self._write(self._given)

    def _write(self, text: str) -> None:
        try:
            self._FILE.write_text(text)
        except OSError as error:
            _log.debug("oom_score_adj stays as it is: %s", error.strerror)


def forbid_core_dumps() -> None:
    """A core dump would hold the guest's bytes, and the guest would wait for it. A limit of 1 byte is
    honoured for files, and also for pipes such as systemd-coredump's (core(5)). The unit sets it too.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == resource.RLIM_INFINITY or hard > _NO_CORE:
        resource.setrlimit(resource.RLIMIT_CORE, (_NO_CORE, _NO_CORE))
