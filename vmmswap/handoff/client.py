# SPDX-License-Identifier: GPL-2.0-or-later
"""Hand guest memory to vmmswap: the library for VMMs written in Python.

    uffd = open_userfaultfd()                 # before the guest's first access; keep it open for ever
    dummy = DummyPage()
    with VmmClient.connect("/run/vmmswap/web.sock") as client:
        client.register([Region(addr, size, 0, memfd=0)], [memfd], uffd, dummy_page=dummy.addr)
        run_the_guest()                       # when the connection ends, the VM is swapped in and released

All methods block, and raise vmmswap.errors classes: a refusal as the monitor named it, ProtocolError where
the monitor does not answer as it should. After an error the connection is of no use.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import json
import mmap
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from vmmswap.errors import BY_DBUS_NAME, AccessDeniedError, InternalError, NoSuchVMError, ProtocolError
from vmmswap.handoff.messages import MAX_FDS, attach_line, encode
from vmmswap.handoff.region import PAGE_SIZE, Region
from vmmswap.linux.userfaultfd import open_userfaultfd

__all__ = ["DummyPage", "Region", "VmmClient", "open_userfaultfd"]

_MAX_REPLY_BYTES = 1 << 16


class DummyPage:
    """One page that nobody touches, for register's and add-process's `dummy_page`. Keep it for as long as
    the uffd.

    Shared, because the kernel may merge private anonymous mappings and fill a part of them with one huge
    page.
    """

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, PAGE_SIZE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        self._view = ctypes.c_char.from_buffer(self._map)
        self.addr = ctypes.addressof(self._view)

    def close(self) -> None:
        """Unmap the page. Afterwards `addr` may be anything's."""
        del self._view
        self._map.close()


class VmmClient:
    """The VMM's end of the hand-off socket. The end of the connection releases the VM."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes over a connected, blocking socket."""
        self._sock = sock

    @classmethod
    def connect(cls, path: str | Path, timeout_s: float | None = 60.0) -> VmmClient:
        """Connect to /run/vmmswap/NAME.sock. timeout_s: for each reply, None to wait for ever."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(timeout_s)
        try:
            sock.connect(str(path))
        except PermissionError:
            sock.close()
            raise AccessDeniedError(
                f"{path} may not be used by uid {os.geteuid()}: see vmmswapctl prepare"
            ) from None
        except OSError as error:
            sock.close()
            raise NoSuchVMError(
                f"{path}: {error.strerror or error}: start vmmswap@NAME.socket, or see vmmswapctl prepare"
            ) from None
        return cls(sock)

    def __enter__(self) -> VmmClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection: the monitor swaps all in and releases the VM."""
        self._sock.close()

    def fileno(self) -> int:
        """For poll: readable means that the monitor has ended the connection."""
        return self._sock.fileno()

    def register(  # noqa: PLR0913  (one keyword for each optional field)
        self,
        regions: Sequence[Region],
        memfds: Sequence[int],
        uffd: int,
        *,
        dummy_page: int | None = None,
        pins: bool = True,
        qmp: str | None = None,
        mailbox: int | None = None,
    ) -> str:
        """Hand the memory of this process over, and return the VM's name. Region.memfd indexes memfds. Of
        private memory (`private_memory`) there are none, and the mailbox comes in their place.
        """
        message = encode("register", regions, dummy_page=dummy_page, pins=pins, qmp=qmp)
        with contextlib.ExitStack() as opened:
            private = []
            if mailbox is not None:
                pagemap = opened.enter_context(Path("/proc/self/pagemap").open("rb", buffering=0))
                private = [mailbox, pagemap.fileno()]
            reply = self._ask(message, [uffd, *memfds, *private], "ready")
        return str(reply.get("name"))

    def add_process(
        self, regions: Sequence[Region], uffd: int, pidfd: int, *, dummy_page: int | None = None
    ) -> None:
        """Report another process before it gets the memory: its uffd, and its addresses in regions."""
        self._ask(encode("add-process", regions, dummy_page=dummy_page), [uffd, pidfd], "ok")

    def add_region(self, regions: Sequence[Region], memfds: Sequence[int], uffd: int | None = None) -> None:
        """Hand more memory over. Region.memfd indexes memfds; uffd only if it is not the registered one."""
        self._ask(encode("add-region", regions), [*([] if uffd is None else [uffd]), *memfds], "ok")

    def remove_region(self, regions: Sequence[Region]) -> None:
        """Take whole regions back. Region.memfd counts all memfds handed over, in order, each once."""
        self._ask(encode("remove-region", regions), [], "ok")

    def attach(
        self,
        pidfd: int,
        *,
        pins: bool = True,
        qmp: str | None = None,
        force: bool = False,
        regions: Sequence[str] = (),
    ) -> str:
        """As root: have the monitor take over a running process, and return the VM's name.

        regions: START-END in hexadecimal, instead of all that looks like guest memory.
        """
        options: dict[str, object] = {"pins": pins, "force": force, "regions": list(regions)} | (
            {"qmp": qmp} if qmp else {}
        )
        reply = self._ask(attach_line(options), [pidfd], "ready")
        return str(reply.get("name"))

    def _ask(self, message: bytes, fds: Sequence[int], wanted: str) -> dict[str, object]:
        if len(fds) > MAX_FDS:
            raise ProtocolError(f"{len(fds)} fds: at most {MAX_FDS} in a message")
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sent = self._sock.sendmsg([message], control)
            self._sock.sendall(message[sent:])
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all was sent: the reply says why
        except TimeoutError:
            raise ProtocolError("the monitor does not take the message") from None
        reply = self._receive()
        if reply.get("type") == "error":
            kind = BY_DBUS_NAME.get(str(reply.get("error")), InternalError)
            raise kind(str(reply.get("message")))
        if reply.get("type") != wanted:
            raise ProtocolError(f"the monitor answered {str(reply)[:100]}, not {wanted}")
        return reply

    def _receive(self) -> dict[str, object]:
        line = b""
        while not line.endswith(b"\n"):
            try:
                piece = self._sock.recv(_MAX_REPLY_BYTES)
            except TimeoutError:
                raise ProtocolError("the monitor does not answer") from None
            except ConnectionResetError:
                piece = b""
            if not piece or len(line) > _MAX_REPLY_BYTES:
                raise ProtocolError("the monitor ended the connection without an answer: register again")
            line += piece
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise ProtocolError(f"the monitor's answer is not a JSON object: {line[:100]!a}")
        return reply
