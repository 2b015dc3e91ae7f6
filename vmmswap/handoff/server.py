# SPDX-License-Identifier: GPL-2.0-or-later
"""The listening hand-off socket: accepts connections, one session each, one VM in all."""

from __future__ import annotations

import asyncio
import logging
import socket

from vmmswap.handoff.ancillary import prepare
from vmmswap.handoff.receiver import Limits
from vmmswap.handoff.requests import HandoffHandler, Memory
from vmmswap.handoff.session import Claim, HandoffSession

_log = logging.getLogger("vmmswap.handoff")
_ACCEPT_RETRY_S = 0.5


class HandoffServer:
    """Sessions of one monitor.

    is_registered: a VM is registered already (after a restart, or by --attach): all that connect get Busy.
    """

    def __init__(
        self, handler: HandoffHandler, limits: Limits | None = None, is_registered: bool = False
    ) -> None:
        self._handler = handler
        self._limits = limits or Limits()
        self._claim = Claim(taken=is_registered)
        self._sessions: dict[asyncio.Task[None], HandoffSession] = {}

    async def serve(self, listener: socket.socket) -> None:
        """Accept until cancelled. The listening socket stays the caller's."""
        prepare(listener)
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                # Out of fds or memory, and the connection still waits: an immediate retry would spin.
                _log.warning("%s: a hand-off connection cannot be accepted: %s", self._handler.name, error)
                await asyncio.sleep(_ACCEPT_RETRY_S)
                continue
            self.start(sock)

    def start(self, sock: socket.socket) -> None:
        """Serve an accepted connection. It is closed at once if too many have connected and not
        registered.
        """
        waiting = sum(not session.is_registered for session in self._sessions.values())
        if waiting >= self._limits.connections:
            _log.warning(
                "%s: %d connections are waiting already: one more closed", self._handler.name, waiting
            )
            sock.close()
            return
        self._run(sock, HandoffSession(sock, self._handler, self._claim, self._limits))

    def adopt(self, sock: socket.socket, memory: Memory) -> None:
        """Go on with the registered VM's connection, which came back from the fd store."""
        session = HandoffSession(sock, self._handler, self._claim, self._limits)
        session.resume(memory)
        self._run(sock, session)

    def _run(self, sock: socket.socket, session: HandoffSession) -> None:
        prepare(sock)
        task = asyncio.get_running_loop().create_task(session.run(), name="hand-off session")
        self._sessions[task] = session
        task.add_done_callback(self._sessions.pop)

    async def close(self) -> None:
        """End all sessions without a word to the handler, and close their sockets."""
        tasks = list(self._sessions)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
