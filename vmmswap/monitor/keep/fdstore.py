# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd's fd store: what must outlive this process, for its successor.

Each fd has a name of its own, so that it can be taken out again. FDPOLL=0, because systemd drops an fd that
polls as an error, and a userfaultfd that is blocking does. Taking effect is asynchronous: barrier() waits
until systemd has worked off all that was sent before.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Container

from vmmswap.errors import InternalError
from vmmswap.later import asyncio
from vmmswap.monitor.keep.keeper import Keeper
from vmmswap.notify import Notifier
from vmmswap.outbox import Message
from vmmswap.reasons import reason_of

_log = logging.getLogger("vmmswap.monitor")

MANIFEST = "manifest"
MESSAGE = "message"  # of a VM that is registering: pending.py
PAGE_MAP = "page-map"
MAILBOX = "mailbox"  # of a VMM that moves its private memory
PAGEMAP = "pagemap"  # of the same
STORE = "store"
WAKE = "wake-record"
TIERS = ("store-segments", "store-ram", "store-disk", "store-key")  # in the order of engine.TierFds
CONNECTION = "connection"
LISTEN = "listen"  # FileDescriptorName= of the socket unit
_BARRIER_S = 20.0
_UNITS_MAX = 4096  # FileDescriptorStoreMax= of our unit
_RESERVE = 128  # for what is not a process's: the memfds of memory that comes later must find room
_BY_PROCESS = ("uffd-", "pidfd-")  # as many as the VMM forks children


def uffd_name(key: int) -> str:
    return f"uffd-{key}"


def pidfd_name(key: int) -> str:
    return f"pidfd-{key}"


def memfd_name(number: int) -> str:
    return f"memfd-{number}"


def has_vm(kept: Container[str]) -> bool:
    """True if a guest that has registered, or is about to, waits for us. kept: names."""
    return MANIFEST in kept or MESSAGE in kept


def has_fd_store() -> bool:
    """True if a service manager keeps fds for us. systemd 254 tells; older ones have one if we
    are a unit of theirs with FileDescriptorStoreMax=, as ours is.
    """
    return bool(os.environ.get("NOTIFY_SOCKET")) and os.environ.get("FDSTORE", "") != "0"


def _room() -> int:
    """What systemd keeps at most; it closes the rest without a word. From 254 on it tells."""
    told = os.environ.get("FDSTORE", "")
    return int(told) if told.isdigit() else _UNITS_MAX


class FdStore:
    """manager None: there is no fd store, and only the keeper is told. What systemd does not take at once is
    sent as soon as it does, by the keeper if we die before that.
    """

    def __init__(self, manager: Notifier | None, keeper: Keeper | None = None) -> None:
        self._manager = manager
        self._keeper = keeper
        self._names: set[str] = set()
        self._unsent: dict[str, Message] = {}
        self._room = _room()

    @property
    def available(self) -> bool:
        return self._manager is not None

    @property
    def manager(self) -> int:
        """The pid of who keeps the fds; 0: nobody does."""
        return os.getppid() if self.available else 0

    def adopt(self, name: str, fd: int | None = None) -> None:
        """Know of an fd that is in the store already. fd None: only to remove it."""
        self._names.add(name)
        if self._keeper is not None and fd is not None:
            self._keeper.keep(name, fd)

    def add(self, name: str, fd: int) -> None:
        """Keep a duplicate of fd. InternalError if there is no fd left for that. A name that is kept already
        is this file's.
        """
        try:
            if self._manager is None:
                if self._keeper is not None:
                    self._keeper.keep(name, fd)
            elif name not in self._names:
                self._send(self._manager, name, fd)
        except OSError as error:
            raise InternalError(f"{name} cannot be kept for a successor: {error.strerror}") from None

    def keeps(self, name: str) -> bool:
        """True if a successor has it, or there is nobody to keep it for one."""
        return self._manager is None or name in self._names

    def _send(self, manager: Notifier, name: str, fd: int) -> None:
        def sent() -> None:
            self._unsent.pop(name, None)
            if self._keeper is not None:
                self._keeper.stored(name)

        reserve = _RESERVE if name.startswith(_BY_PROCESS) else 0
        if len(self._names) + reserve >= self._room:
            fewer = ", or have the VM run fewer forked children" if reserve else ""
            raise InternalError(
                f"{name} cannot be kept for a successor: systemd keeps {self._room} fds, {_RESERVE} of them"
                f" for memory: raise FileDescriptorStoreMax={fewer}"
            )
        with manager.hold():  # whoever sends it on closes its fd, and calls sent(), which must come last
            message = manager.notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", [fd], on_sent=sent)
            self._names.add(name)
            if message.is_waiting:
                self._unsent[name] = message
            if self._keeper is not None:
                self._keeper.keep(name, fd, unsent=message.fds[0] if message.is_waiting else -1)

    def remove(self, name: str) -> None:
        """Have the duplicate closed."""
        with contextlib.nullcontext() if self._manager is None else self._manager.hold():
            if self._keeper is not None:
                self._keeper.forget(name)
            unsent = self._unsent.pop(name, None)
            if name in self._names and self._manager is not None:
                self._names.discard(name)
                if unsent is None or not self._manager.cancel(unsent):
                    self._manager.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def remove_all(self) -> None:
        for name in sorted(self._names):
            self.remove(name)
        if self._keeper is not None:
            self._keeper.forget_all()

    async def barrier(self) -> None:
        """Return once systemd has seen to all that was sent. OSError (TimeoutError) if it does not."""
        if self._manager is None:
            return
        loop = asyncio.get_running_loop()
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        passed: asyncio.Future[None] = loop.create_future()
        message: Message | None = None
        try:
            try:
                message = self._manager.notify("BARRIER=1", [writer])
            finally:
                os.close(writer)
            # systemd closes the other end: end of file.
            loop.add_reader(reader, _finish, passed)
            async with asyncio.timeout(_BARRIER_S):
                await passed
        finally:
            if message is not None:
                self._manager.cancel(message)
            loop.remove_reader(reader)
            os.close(reader)

    async def try_barrier(self) -> None:
        """The same where nothing can be done if systemd does not: the journal says so."""
        try:
            await self.barrier()
        except OSError as error:
            _log.error("systemd does not confirm what it keeps for us: %s", reason_of(error))


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
