# SPDX-License-Identifier: GPL-2.0-or-later
"""The socket that VMMs connect to: the socket unit's, or one of our own."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from vmmswap.errors import StorageFailedError

_MAX_PATH_BYTES = 107  # sun_path


@contextlib.contextmanager
def listener_of(path: Path | None, given: int | None, *, may_lack: bool) -> Iterator[socket.socket | None]:
    if given is not None:
        with socket.socket(fileno=given) as listener:
            yield listener
        return
    if path is None and may_lack:
        yield None
        return
    if path is None:
        raise StorageFailedError(
            "no socket to listen on: start vmmswap@NAME.socket, which passes one, or give --listen PATH"
        )
    try:
        listener = _bind(path)
    except StorageFailedError as error:
        if not may_lack:
            raise
        logging.getLogger("vmmswap").error("%s; the VM that is registered is served", error.message)
        yield None
        return
    with listener:
        inode = path.stat().st_ino
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()


def _bind(path: Path) -> socket.socket:
    """Listen at the path, and replace a socket that nobody listens on any more."""
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise StorageFailedError(f"--listen {path}: a socket's path has at most {_MAX_PATH_BYTES} bytes")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o117)
    try:
        if _is_dead_socket(path):
            path.unlink()
        listener.bind(os.fspath(path))
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise StorageFailedError(f"cannot listen on {path}: {error.strerror}") from None
    finally:
        os.umask(before)
    return listener


def _is_dead_socket(path: Path) -> bool:
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
