# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that a hostile peer may pass and whose close() waits: TCP that lingers, a file of a FUSE server."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

FUSE_SERVER = Path(__file__).with_name("fuse_server.py")
_LINGER_S = 3600


class LingeringSocket:
    """A TCP socket with unsent data and SO_LINGER: whoever closes it last waits. `end` lets go."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.sock = socket.create_connection(listener.getsockname())
            self._reader, _ = listener.accept()
        self.sock.setblocking(False)
        try:
            while True:
                self.sock.send(b"x" * 65536)
        except BlockingIOError:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, _LINGER_S))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self.sock.close()

    def end(self) -> None:
        """Unread data at the other end resets the connection."""
        self._reader.close()

    def fileno(self) -> int:
        return self.sock.fileno()


class FuseFile:
    """An open file whose server answers until silence(). Leaving the block ends the server and all waits.
    inode: its number, as the server says.
    """

    def __init__(self, directory: Path, inode: int = 2) -> None:
        self.inode = inode
        ours, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, str(FUSE_SERVER), str(theirs.fileno()), str(directory), str(inode)],
                pass_fds=[theirs.fileno()],
            )
        self._stream = ours
        _, (self.fd,), _, _ = socket.recv_fds(ours, 6, 1)
        self._lines = ours.makefile("r")

    @staticmethod
    def missing() -> str | None:
        return None if Path("/dev/fuse").exists() else "needs FUSE: there is no /dev/fuse"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self._lines.close()
        self._stream.close()
        if self.fd >= 0:
            with contextlib.suppress(OSError):  # the flush meets the end of the server
                self.close()

    def silence(self) -> None:
        self._stream.send(b"s")
        assert self.next_request() == "silent"

    def close(self) -> None:
        """Ours; before silence(), or it waits as any other does."""
        os.close(self.fd)
        self.fd = -1

    def end(self) -> None:
        """End the server. Whoever has the file open can be killed only after that."""
        self._server.kill()
        self._server.wait()

    def next_request(self) -> str:
        """What somebody waits for from now on."""
        return self._lines.readline().strip()

    def requests_so_far(self) -> list[str]:
        self._stream.setblocking(False)
        try:
            return self._stream.recv(4096).decode().split()
        except BlockingIOError:
            return []
        finally:
            self._stream.setblocking(True)
