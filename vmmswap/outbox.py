# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages for somebody who may not read: sent in their order, and never waited for.

The journal and the service manager listen on sockets that hold few messages, and a write to either waits for
as long as they do not read. A monitor that waits serves nobody's orders, and the watchdog ends it once the
service manager runs again. So what cannot be sent now waits here, up to a bound, and is sent as soon as there
is room; what is beyond the bound is dropped and counted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from vmmswap.later import asyncio

WAITS = (errno.EAGAIN, errno.ENOBUFS)
_RETRY_S = 1.0
_MESSAGE_COST_BYTES = 256  # besides its text
_F_SEAL_ALL = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Message:
    """One that may still wait. fds: duplicates of its own, while it does."""

    def __init__(self, data: bytes, latest: str, on_sent: Callable[[], None] | None) -> None:
        self.data = data
        self.latest = latest
        self.on_sent = on_sent
        self.is_waiting = False
        self.fds: list[int] = []

    @property
    def cost_bytes(self) -> int:
        return len(self.data) + _MESSAGE_COST_BYTES

    def close(self) -> None:
        self.is_waiting = False
        fds, self.fds = self.fds, []
        for fd in fds:
            os.close(fd)


class Outbox:
    """May be used from any thread. limit_bytes: of what may wait; None: no message is ever dropped."""

    def __init__(self, fd: int, limit_bytes: int | None) -> None:
        self._fd = fd
        self._limit_bytes = limit_bytes
        self._waiting: deque[Message] = deque()
        self._waiting_bytes = 0
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_listening = False
        self._lacks_room = True
        self.dropped = 0

    def start(self) -> None:
        """From now on the running loop sends what waits. Without one, the next send() does."""
        with self._lock:
            self._loop = asyncio.get_running_loop()
            if self._waiting:
                self._listen()

    def send(
        self,
        data: bytes,
        fds: Sequence[int] = (),
        *,
        latest: str = "",
        on_sent: Callable[[], None] | None = None,
    ) -> Message:
        """Send, now or as soon as there is room; the fds stay the caller's. latest: the message takes the
        place of one that waits and has the same. on_sent: called then. OSError if the fds cannot be kept.
        """
        message = Message(data, latest, on_sent)
        with self._lock:
            self._drop_older(latest)
            self._send_waiting()
            if self._waiting or not self._try(message, fds):
                self._wait(message, fds)
        return message

    def hold(self) -> AbstractContextManager[bool]:
        """Inside, no other thread sends what waits."""
        return self._lock

    def cancel(self, message: Message) -> bool:
        """True if it was still waiting: it is not sent any more."""
        with self._lock:
            if not message.is_waiting:
                return False
            self._waiting.remove(message)
            self._waiting_bytes -= message.cost_bytes
            message.close()
            return True

    def flush(self, limit_s: float) -> None:
        """Wait, no longer than that, until all is sent: for the end of a process."""
        end_s = time.monotonic() + limit_s
        with self._lock:
            while self._send_waiting() and (left_s := end_s - time.monotonic()) > 0:
                self._poll(min(left_s, _RETRY_S))

    def close(self) -> None:
        """What waits is dropped."""
        with self._lock:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_writer(self._fd)
            self._loop = None
            self.dropped += len(self._waiting)
            while self._waiting:
                self._waiting.popleft().close()

    @property
    def waiting(self) -> int:
        """How many messages wait."""
        return len(self._waiting)

    def _transmit(self, data: bytes, fds: Sequence[int]) -> int:
        """Bytes sent. OSError, of WAITS if there is no room."""
        raise NotImplementedError

    def _poll(self, limit_s: float) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.poll(limit_s * 1000)

    def _try(self, message: Message, fds: Sequence[int]) -> bool:
        while message.data:
            try:
                message.data = message.data[self._transmit(message.data, fds) :]
            except OSError as error:
                self._lacks_room = error.errno in WAITS
                return False
        if message.on_sent is not None:
            message.on_sent()
        return True

    def _drop_older(self, latest: str) -> None:
        if latest:
            for older in [item for item in self._waiting if item.latest == latest]:
                self.cancel(older)

    def _wait(self, message: Message, fds: Sequence[int]) -> None:
        if self._limit_bytes is not None and self._waiting_bytes + message.cost_bytes > self._limit_bytes:
            self.dropped += 1
            return
        try:
            for fd in fds:
                message.fds.append(os.dup(fd))
        except BaseException:
            message.close()
            raise
        message.is_waiting = True
        self._waiting.append(message)
        self._waiting_bytes += message.cost_bytes
        self._listen()

    def _send_waiting(self) -> int:
        """How many wait on."""
        while self._waiting:
            first = self._waiting[0]
            cost_bytes = first.cost_bytes
            is_sent = self._try(first, first.fds)
            self._waiting_bytes -= cost_bytes
            if not is_sent:
                self._waiting_bytes += first.cost_bytes
                break
            self._waiting.popleft().close()
        return len(self._waiting)

    def _listen(self) -> None:
        if self._loop is not None and not self._is_listening and not self._loop.is_closed():
            self._is_listening = True
            self._loop.call_soon_threadsafe(self._listen_now)

    def _listen_now(self) -> None:
        """Only for room can one wait. Nobody there, or no fd left: again in a while."""
        if self._loop is None:
            return
        if self._lacks_room:
            self._loop.add_writer(self._fd, self._go_on)
        else:
            self._loop.remove_writer(self._fd)
            self._loop.call_later(_RETRY_S, self._go_on)

    def _go_on(self) -> None:
        with self._lock:
            had_room = not self._lacks_room
            if self._send_waiting() == 0:
                self._is_listening = False
                if self._loop is not None:
                    self._loop.remove_writer(self._fd)
            elif had_room or not self._lacks_room:
                self._listen_now()


class DatagramOutbox(Outbox):
    """To a socket of AF_UNIX. A message that is too large for it goes as a sealed memfd if as_memfd, which is
    the journal's protocol.
    """

    def __init__(self, address: str, limit_bytes: int | None, *, as_memfd: bool = False) -> None:
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_UNIX, kind)
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._is_connected = False
        self._as_memfd = as_memfd
        super().__init__(self._socket.fileno(), limit_bytes)

    def close(self) -> None:
        super().close()
        self._socket.close()

    def _transmit(self, data: bytes, fds: Sequence[int]) -> int:
        if not self._is_connected:
            self._socket.connect(self._address)  # once more, perhaps: whoever listened is gone
            self._is_connected = True
        try:
            socket.send_fds(self._socket, [data], fds, socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno == errno.EMSGSIZE and self._as_memfd and not fds:
                self._transmit_as_memfd(data)
                return len(data)
            if error.errno not in WAITS:
                self._is_connected = False
            raise
        return len(data)

    def _transmit_as_memfd(self, data: bytes) -> None:
        memfd = os.memfd_create("vmmswap-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(memfd, data)
            fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _F_SEAL_ALL)
            socket.send_fds(self._socket, [b""], [memfd], socket.MSG_NOSIGNAL)
        finally:
            os.close(memfd)


class StreamOutbox(Outbox):
    """To a terminal, a pipe, a file, whose flags others share, so that it cannot be made non-blocking."""

    def _transmit(self, data: bytes, _fds: Sequence[int]) -> int:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if not poll.poll(0):
            raise BlockingIOError(errno.EAGAIN, "no room")
        try:
            return os.write(self._fd, data[: select.PIPE_BUF])  # so much at least does not wait
        except OSError as error:
            if error.errno in WAITS:
                raise
            self.dropped += 1  # nobody reads any more, or the disk is full
            return len(data)
