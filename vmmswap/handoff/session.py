# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor's side of one accepted connection: receive, validate, call the handler, reply."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from vmmswap.errors import AccessDeniedError, BusyError, InternalError, ProtocolError, VmmswapError
from vmmswap.handoff import checks, messages
from vmmswap.handoff.lane import Lane
from vmmswap.handoff.messages import AddProcess, AddRegion, Attach, Register, RemoveRegion
from vmmswap.handoff.receiver import Frame, Limits, receive
from vmmswap.handoff.refusal import error_reply, has_hung_up, reply_line
from vmmswap.handoff.requests import HandoffHandler, Memory
from vmmswap.linux.owned import OwnedFds
from vmmswap.reasons import reason_of

_log = logging.getLogger("vmmswap.handoff")


class _OwnsFds(Protocol):
    @property
    def fds(self) -> OwnedFds: ...


_T = TypeVar("_T", bound=_OwnsFds)
_OK: dict[str, str] = {"type": "ok"}


class Claim:
    """One VM per socket: who may register.

    Held from the first message that asks for it, for good if it succeeds.
    """

    def __init__(self, taken: bool = False) -> None:
        self.taken = taken

    def take(self, handler: HandoffHandler) -> None:
        if self.taken:
            raise taken_error(handler.name, handler.occupant())
        self.taken = True

    def give_back(self) -> None:
        self.taken = False


def taken_error(name: str, occupant: str) -> BusyError:
    """One name, one VM. occupant: its process, "" while it registers."""
    if not occupant:
        return BusyError(f"another VM is registering as {name!r} right now: try again, or use another name")
    return BusyError(
        f"the name {name!r} is taken by process {occupant}: `vmmswapctl exit {name}` releases that VM;"
        " another VM needs a name, and a socket, of its own"
    )


class HandoffSession:
    """Owns the socket. `run` returns when the connection has ended and all that it sent is closed, and raises
    nothing but CancelledError.
    """

    def __init__(
        self, sock: socket.socket, handler: HandoffHandler, claim: Claim, limits: Limits | None = None
    ) -> None:
        self._sock = sock
        self._handler = handler
        self._claim = claim
        self._limits = limits or Limits()
        self._memory: Memory | None = None
        self._is_registered = False
        self._is_over = False
        self.lane = Lane()

    def resume(self, memory: Memory) -> None:
        """Before `run`: this connection comes from the fd store, and its VM has registered memory.

        What was read of a message when the former monitor died is lost. The VMM gets no answer, or an error
        for the rest of the message; neither has an effect on the VM.
        """
        self._claim.taken = True
        self._memory = memory
        self._is_registered = True

    @property
    def is_registered(self) -> bool:
        """True if this connection's end releases the VM."""
        return self._is_registered

    async def run(self) -> None:
        """Serve until the end of the connection.

        If cancelled, the VM stays registered and the handler hears nothing; closing is not waited for.
        """
        try:
            error = await self._serve_all()
            if error is not None:
                await self._refuse(error)
        finally:
            self.lane.put(self._sock.close)
        if self._is_registered:
            await self._report_end(error)
        await self.lane.drained()  # until then what it has sent is there, and the connection counts

    async def _serve_all(self) -> VmmswapError | None:
        """None if the peer ended the connection, else why it is refused."""
        try:
            await self._serve()
        except VmmswapError as refusal:
            return refusal
        except OSError as failure:  # a VMM that ends, or changes what it sent while we look at it
            _log.warning("%s: hand-off: %s", self._handler.name, reason_of(failure))
            return ProtocolError(f"the hand-off failed: {failure.strerror or 'a system call failed'}")
        except Exception:
            _log.exception("%s: hand-off: a bug in vmmswap, not in the VMM", self._handler.name)
            return InternalError("the monitor failed: its journal says why")
        return None

    async def _serve(self) -> None:
        while not self._is_over:
            silence_s = None if self._is_registered else self._limits.silence_s
            frame = await receive(self._sock, self._limits, silence_s, self.lane)
            if frame is None:
                return
            try:
                reply = await self._answer(frame)
            finally:
                self.lane.put(frame.close)
            if reply is None or not await self._send(reply):
                return

    async def _answer(self, frame: Frame) -> dict[str, str] | None:
        """Do what the message asks and return the reply, None for no reply."""
        if self._memory is None:
            return await self._answer_first(frame)
        if frame.peer.pid != self._memory.pid:
            raise AccessDeniedError(
                f"sender: process {frame.peer.pid}: only process {self._memory.pid}, which registered, may"
                " send more"
            )
        match messages.parse(frame.data, len(frame.fds)):
            case AddProcess() as message:
                await self._add_process(message, frame, self._memory)
            case AddRegion() as message:
                await self._add_region(message, frame, self._memory)
            case RemoveRegion() as message:
                request = checks.remove_region(message, frame, self._memory)
                await self._handler.remove_region(request)
                self._memory = self._memory.without(request.regions)
            case _:
                raise BusyError("type: this connection has registered a VM already")
        return _OK

    async def _answer_first(self, frame: Frame) -> dict[str, str] | None:
        self._handler.check_peer(frame.peer)
        self._claim.take(self._handler)
        try:
            if frame.is_firecracker:
                await register_firecracker(frame, self._handler, self.lane)
            else:
                await self._register_or_attach(frame)
        except BaseException:
            self._claim.give_back()
            raise
        return None if frame.is_firecracker else {"type": "ready", "name": self._handler.name}

    async def _register_or_attach(self, frame: Frame) -> None:
        match messages.parse(frame.data, len(frame.fds)):
            case Register() as message:
                await self._register(message, frame)
            case Attach() as message:
                await self._attach(message, frame)
            case _:
                raise ProtocolError("type: no VM is registered on this connection: send register first")

    async def _register(self, message: Register, frame: Frame) -> None:
        request = await _check(self.lane, lambda: checks.register(message, frame, self._sock.fileno()))
        async with _closed_after(request, self.lane):
            await self._handler.register(request)
        self._memory = request.memory
        self._is_registered = True

    async def _attach(self, message: Attach, frame: Frame) -> None:
        request = await _check(self.lane, lambda: checks.attach(message, frame))
        request = replace(request, is_given_up=lambda: has_hung_up(self._sock.fileno()))
        async with _closed_after(request, self.lane):
            await self._handler.attach(request)
        self._is_over = True

    async def _add_process(self, message: AddProcess, frame: Frame, memory: Memory) -> None:
        served_pid = self._handler.served_pid(frame.fds[0])
        request = await _check(self.lane, lambda: checks.add_process(message, frame, memory, served_pid))
        async with _closed_after(request, self.lane):
            await self._handler.add_process(request)

    async def _add_region(self, message: AddRegion, frame: Frame, memory: Memory) -> None:
        request = await _check(self.lane, lambda: checks.add_region(message, frame, memory))
        async with _closed_after(request, self.lane):
            await self._handler.add_region(request)
        self._memory = memory.with_regions(request.regions, request.files)

    async def _send(self, reply: dict[str, str]) -> bool:
        """False if the peer is gone or does not take the reply."""
        try:
            async with asyncio.timeout(self._limits.reply_s):
                await asyncio.get_running_loop().sock_sendall(self._sock, reply_line(reply))
        except (OSError, TimeoutError):
            return False
        return True

    async def _refuse(self, error: VmmswapError) -> None:
        _log.warning("%s: hand-off refused: %s", self._handler.name, error.message)
        await self._send(error_reply(error))

    async def _report_end(self, error: VmmswapError | None) -> None:
        try:
            await self._handler.connection_lost(error)
        except Exception:
            _log.exception("%s: the end of the VMM's connection could not be handled", self._handler.name)


async def register_firecracker(frame: Frame, handler: HandoffHandler, lane: Lane) -> None:
    """Do what Firecracker's message asks; a successor of the monitor that read it begins here, too."""
    message = messages.parse_firecracker(frame.data, len(frame.fds))
    async with handler.keeping(frame):
        request = await _check(lane, lambda: checks.firecracker(message, frame))
        async with _closed_after(request, lane):
            await handler.register_firecracker(request)


async def _check(lane: Lane, work: Callable[[], _T]) -> _T:
    """A checked request. It may wait for a lock of the VMM's."""
    return await lane.run(work, lambda request: request.fds.close())


@contextlib.asynccontextmanager
async def _closed_after(request: _OwnsFds, lane: Lane) -> AsyncIterator[None]:
    """What the handler has not taken over is closed on the lane."""
    try:
        yield
    finally:
        lane.put(request.fds.close)
