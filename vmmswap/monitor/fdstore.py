# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd's fd store: what must outlive this process, for its successor.

Each fd has a name of its own, so that it can be taken out again. FDPOLL=0, because systemd drops an fd that
polls as an error, and a userfaultfd that is blocking does. Taking effect is asynchronous: barrier() waits
until systemd has worked off all that was sent before.
"""

from __future__ import annotations

import asyncio
import logging
import os

import systemd.daemon

from vmmswap.errors import InternalError
from vmmswap.monitor.keeper import Keeper

_log = logging.getLogger("vmmswap.fdstore")

MANIFEST = "manifest"
MESSAGE = "message"  # of a VM that is registering: pending.py
PAGE_MAP = "page-map"
STORE = "store"
CONNECTION = "connection"
LISTEN = "listen"  # FileDescriptorName= of the socket unit
_BARRIER_S = 20.0


def uffd_name(key: int) -> str:
    return f"uffd-{key}"


def pidfd_name(key: int) -> str:
    return f"pidfd-{key}"


def memfd_name(number: int) -> str:
    return f"memfd-{number}"


def has_fd_store() -> bool:
    """Whether there is a service manager that keeps fds for us. systemd 254 tells; older ones have one if we
    are a unit of theirs with FileDescriptorStoreMax=, as ours is.
    """
    return bool(os.environ.get("NOTIFY_SOCKET")) and os.environ.get("FDSTORE", "") != "0"


class FdStore:
    """Without a service manager only the keeper is told."""

    def __init__(self, available: bool, keeper: Keeper | None = None) -> None:
        self.available = available
        self._keeper = keeper
        self._names: set[str] = set()

    def adopt(self, name: str, fd: int | None = None) -> None:
        """Know of an fd that is in the store already. fd None: only to remove it."""
        self._names.add(name)
        if self._keeper is not None and fd is not None:
            self._keeper.keep(name, fd)

    def add(self, name: str, fd: int) -> None:
        """Keep a duplicate of fd. InternalError if systemd cannot be told. A name that is kept already is
        this file's.
        """
        if self.available and name not in self._names:
            try:
                systemd.daemon.notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", fds=[fd])
            except OSError as error:
                raise InternalError(f"systemd does not take {name} into its fd store: {error}") from None
            self._names.add(name)
        if self._keeper is not None:
            self._keeper.keep(name, fd)

    def remove(self, name: str) -> None:
        """Have the duplicate closed."""
        if self._keeper is not None:
            self._keeper.forget(name)
        if name in self._names:
            self._names.discard(name)
            try:
                systemd.daemon.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
            except OSError as error:
                _log.error("systemd does not take %s out of its fd store: %s", name, error)

    def remove_all(self) -> None:
        for name in sorted(self._names):
            self.remove(name)
        if self._keeper is not None:
            self._keeper.forget_all()

    async def barrier(self) -> None:
        """Return once systemd has seen to all that was sent. OSError (TimeoutError) if it does not."""
        if not self.available:
            return
        loop = asyncio.get_running_loop()
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        passed: asyncio.Future[None] = loop.create_future()
        try:
            try:
                systemd.daemon.notify("BARRIER=1", fds=[writer])
            finally:
                os.close(writer)
            # systemd closes the other end: end of file.
            loop.add_reader(reader, _finish, passed)
            async with asyncio.timeout(_BARRIER_S):
                await passed
        finally:
            loop.remove_reader(reader)
            os.close(reader)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
