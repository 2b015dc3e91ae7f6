# SPDX-License-Identifier: GPL-2.0-or-later
"""The listening hand-off socket: accepts connections, one session each, one VM in all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from vmmswap.handoff.ancillary import prepare
from vmmswap.handoff.lane import Lane
from vmmswap.handoff.receiver import Limits, wait_readable
from vmmswap.handoff.requests import HandoffHandler, Memory
from vmmswap.handoff.session import Claim, HandoffSession
from vmmswap.reasons import reason_of

_log = logging.getLogger("vmmswap.handoff")
_ACCEPT_RETRY_S = 0.5
_CLOSE_S = 1.0
_MAX_REFUSED = 64  # connections that wait to be closed
_UCRED = struct.Struct("iII")  # pid, uid, gid


@dataclass(frozen=True, slots=True)
class _Open:
    """A connection, and the uid that made it."""

    session: HandoffSession
    uid: int


class HandoffServer:
    """Sessions of one monitor.

    is_registered: a VM is registered already (after a restart, or by --attach): all that connect get Busy.
    owner_uid: whose the VM is, if that is recorded.
    """

    def __init__(
        self,
        handler: HandoffHandler,
        limits: Limits | None = None,
        is_registered: bool = False,
        owner_uid: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._handler = handler
        self._owner_uid = owner_uid
        self._is_closed = False
        self._is_crowded = False
        self.accepted = 0  # connections so far
        self._limits = limits or Limits()
        self._refused = Lane()
        self._claim = Claim(taken=is_registered)
        self._sessions: dict[asyncio.Task[None], _Open] = {}

    async def serve(self, listener: socket.socket) -> None:
        """Accept until cancelled or closed. The listening socket stays the caller's.

        Nothing is waited for between accepting a connection and serving it: an end in between loses none.
        """
        prepare(listener)
        while not self._is_closed:
            if self._refused.backlog > _MAX_REFUSED:  # closing them takes long: what they have sent is odd
                await self._refused.drained()
            await wait_readable(listener)
            if self._is_closed:
                return
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue  # its peer has left
            except OSError as error:
                # Out of fds or memory, and the connection still waits: an immediate retry would spin.
                _log.warning(
                    "%s: a hand-off connection cannot be accepted: %s", self._handler.name, reason_of(error)
                )
                await asyncio.sleep(_ACCEPT_RETRY_S)
                continue
            self.start(sock)

    def start(self, sock: socket.socket) -> None:
        """Serve an accepted connection. It is closed at once if too many have connected and not
        registered.
        """
        self.accepted += 1
        uid = _uid_of(sock)
        if self._has_room(uid):
            self._is_crowded = False
            self._run(sock, HandoffSession(sock, self._handler, self._claim, self._limits), uid)
            return
        if not self._is_crowded:  # once, however often they try
            _log.warning(
                "%s: too many connections of uid %d wait without a VM: further ones are closed",
                self._handler.name,
                uid,
            )
        self._is_crowded = True
        self._refused.put(sock.close)

    def _has_room(self, uid: int) -> bool:
        """Nobody's connections keep another user out, and all others' together neither root nor the owner."""
        favoured = (0, self._owner_uid())
        waiting = [item.uid for item in self._sessions.values() if not item.session.is_registered]
        others = sum(one not in favoured for one in waiting)
        return waiting.count(uid) < self._limits.connections_per_uid and (
            uid in favoured or others < self._limits.connections
        )

    @property
    def is_idle(self) -> bool:
        """True if nobody is connected."""
        return not self._sessions

    def stop_accepting(self) -> None:
        """From now on who connects waits for the next monitor."""
        self._is_closed = True

    def adopt(self, sock: socket.socket, memory: Memory) -> None:
        """Resume the registered VM's connection, which came back from the fd store."""
        session = HandoffSession(sock, self._handler, self._claim, self._limits)
        session.resume(memory)
        self._run(sock, session, _uid_of(sock))

    def _run(self, sock: socket.socket, session: HandoffSession, uid: int) -> None:
        prepare(sock)
        task = asyncio.get_running_loop().create_task(session.run(), name="hand-off session")
        self._sessions[task] = _Open(session, uid)
        task.add_done_callback(self._sessions.pop)

    async def close(self) -> None:
        """End all sessions without a word to the handler, and close their sockets: what takes longer than
        _CLOSE_S is left to the end of the process.
        """
        sessions = dict(self._sessions)
        for task in sessions:
            task.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)
        lanes = [self._refused, *(item.session.lane for item in sessions.values())]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.gather(*(lane.drained() for lane in lanes))


def _uid_of(sock: socket.socket) -> int:
    """Who connected: the sender of a message may be another, and is asked for each."""
    _pid, uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)
