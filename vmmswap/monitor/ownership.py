# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose a monitor's VM is, and so who may hand memory over to it.

The owner is recorded before anybody connects: by Owner= in the configuration, or else by the socket itself.
vmmswapd gives the socket that it prepares to the caller (host/sockets.py), and only root could give it to
somebody else. A socket that the administrator's unit has made is root's and says nothing: without Owner=,
root and the members of its group may use it, and whose the VM is follows from who registers.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from pathlib import Path

from vmmswap.config_checks import ConfigError, uid_of
from vmmswap.errors import AccessDeniedError

_log = logging.getLogger("vmmswap.ownership")


class Ownership:
    """The owner of one monitor's VM, by its Owner= setting and the path that it listens at."""

    def __init__(self, name: str, owner: str, listener: socket.socket | None) -> None:
        """If `owner` is not a user of this host, only root may hand a VM over."""
        self._name = name
        self._configured = _configured(owner)
        self._path = _path_of(listener)
        self._holder = _holder_of(self._path)

    def owner_uid(self) -> int | None:
        """The recorded owner; None if there is none. A removed socket keeps its owner."""
        if self._configured is not None:
            return self._configured
        if self._path is not None and self._path.exists():
            self._holder = _holder_of(self._path)
        return self._holder

    def check(self, uid: int) -> None:
        """AccessDeniedError unless this uid may hand a VM over here."""
        owner_uid = self.owner_uid()
        if owner_uid is not None and not _is_trusted(uid) and uid != owner_uid:
            raise AccessDeniedError(
                f"uid {uid} may not hand a VM over as {self._name!r}, which belongs to uid {owner_uid}: use"
                " another name, with a socket of its own"
            )

    def check_snapshot(self, file: int, uid: int) -> None:
        """AccessDeniedError unless the contents of SnapshotFile=, open as `file`, may go to this uid.

        That the VM's socket is his is not enough: the setting is the administrator's, and anybody might have
        prepared the name before.
        """
        if _is_trusted(uid) or uid in (self._configured, os.fstat(file).st_uid):
            return
        raise AccessDeniedError(
            f"uid {uid} may not read SnapshotFile=: set Owner= for the VM {self._name!r} to the user whose VM"
            " it is"
        )


def _configured(owner: str) -> int | None:
    if not owner:
        return None
    try:
        return uid_of(owner)
    except ConfigError as error:  # a VM whose memory is out must be served in any case
        _log.error("%s: nobody but root may hand a VM over", error.message)
        return 0


def _is_trusted(uid: int) -> bool:
    """True for those who could do the same without us: root, and the user who runs this monitor."""
    return uid in (0, os.geteuid())


def _path_of(listener: socket.socket | None) -> Path | None:
    name = None if listener is None else listener.getsockname()
    return Path(name) if isinstance(name, str) and name.startswith("/") else None


def _holder_of(path: Path | None) -> int | None:
    if path is None:
        return None
    try:
        status = path.stat(follow_symlinks=False)
    except OSError:
        return None
    if status.st_uid != os.geteuid() or not status.st_mode & stat.S_IWGRP:
        return status.st_uid
    return None  # a socket for a group
