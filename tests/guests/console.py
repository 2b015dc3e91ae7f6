# SPDX-License-Identifier: GPL-2.0-or-later
"""The serial console of a guest that runs workload.c: orders go in, answers come out."""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Callable
from types import SimpleNamespace, TracebackType
from typing import Self

ORDER_S = 240.0


class Console:
    """Owns the socket. log: what may say why the guest has ended."""

    def __init__(self, sock: socket.socket, log: Callable[[], str]) -> None:
        self._sock, self._log = sock, log
        self._output = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def connect_again(self, sock: socket.socket) -> None:
        """The same guest goes on in another VMM."""
        self._sock.close()
        self._sock, self._output = sock, b""

    def send(self, order: str) -> None:
        """Give an order without waiting for its answer."""
        self._output = b""
        self._sock.sendall(order.encode() + b"\n")

    def answer(self, order: str, deadline_s: float = ORDER_S) -> SimpleNamespace:
        """The answer to an order that was sent: its numbers by name."""
        name = order.split(maxsplit=1)[0]
        line = self.read_to(re.compile(rb"(?m)^" + name.encode() + rb"( [^\r\n]*)?\r?\n"), deadline_s)
        words = line.decode().split()[1:]
        return SimpleNamespace(**{key: int(value) for key, value in (word.split("=") for word in words)})

    def order(self, order: str, deadline_s: float = ORDER_S) -> SimpleNamespace:
        self.send(order)
        return self.answer(order, deadline_s)

    def read_to(self, text: bytes | re.Pattern[bytes], deadline_s: float) -> bytes:
        pattern = re.compile(re.escape(text)) if isinstance(text, bytes) else text
        end = time.monotonic() + deadline_s
        while not (match := pattern.search(self._output)):
            left_s = end - time.monotonic()
            ready = select.select([self._sock], [], [], max(0.0, left_s))[0]
            assert ready, f"the guest does not say {pattern.pattern!r}:\n{self._output.decode()}"
            try:
                piece = self._sock.recv(65536)
            except ConnectionResetError:
                piece = b""
            assert piece, f"the VMM has ended:\n{self._log()}{self._output.decode()}"
            self._output += piece
        self._output = self._output[match.end() :]
        return match[0]
