# SPDX-License-Identifier: GPL-2.0-or-later
"""A hand-off that is sent only once, kept until its VM is registered.

Firecracker sends its message, reads no answer, and its guest waits for pages from then on. If the monitor
died before the VM's record is in the fd store, nobody would ever serve them. So what came is kept first: the
userfaultfd and the sender's pidfd, under the names that they have in the end, because systemd keeps a file
only once; then the message. A successor that finds the message and no record begins where it had just been
read.
"""

from __future__ import annotations

import json
import logging
import os

from vmmswap.errors import VmmswapError
from vmmswap.handoff.peer import Peer
from vmmswap.handoff.receiver import Frame
from vmmswap.linux.owned import OwnedFds
from vmmswap.linux.userfaultfd import is_userfaultfd
from vmmswap.monitor.keep import fdstore
from vmmswap.monitor.keep.fdstore import FdStore
from vmmswap.monitor.keep.manifest import VMM_KEY
from vmmswap.reasons import reason_of

_log = logging.getLogger("vmmswap.pending")

_VERSION = 1
_UFFD, _PIDFD = fdstore.uffd_name(VMM_KEY), fdstore.pidfd_name(VMM_KEY)


def keep(frame: Frame, store: FdStore) -> None:
    """Keep a message that came with one fd. If that fails the VM is registered all the same.

    Only a userfaultfd is kept: another file might do anything to who closes it.
    """
    if not is_userfaultfd(frame.fds[0]):
        return
    try:
        message = _write(frame)
        try:
            store.add(_UFFD, frame.fds[0])
            store.add(_PIDFD, frame.peer.pidfd)
            store.add(fdstore.MESSAGE, message)
        finally:
            os.close(message)
    except (OSError, VmmswapError) as error:
        _log.error(
            "if this monitor is killed now the guest hangs: its message cannot be kept: %s", reason_of(error)
        )


def drop(store: FdStore, *, has_vm: bool) -> None:
    """The VM is registered, or refused."""
    store.remove(fdstore.MESSAGE)
    if not has_vm:
        store.remove(_UFFD)
        store.remove(_PIDFD)


def take(kept: dict[str, int], store: FdStore) -> Frame | None:
    """What a predecessor kept, taken out of `kept`, as if it had just been received. None: nothing of use."""
    if not {fdstore.MESSAGE, _UFFD, _PIDFD} <= kept.keys():
        return None
    fds = {name: kept.pop(name) for name in (fdstore.MESSAGE, _UFFD, _PIDFD)}
    for name, fd in fds.items():
        store.adopt(name, fd)
    try:
        return _read(fds[fdstore.MESSAGE], fds[_UFFD], fds[_PIDFD])
    finally:
        os.close(fds[fdstore.MESSAGE])


def _write(frame: Frame) -> int:
    peer = frame.peer
    values = {"version": _VERSION, "pid": peer.pid, "uid": peer.uid, "gid": peer.gid}
    text = json.dumps(values | {"text": frame.data.decode()}).encode()
    fd = os.memfd_create("vmmswap-message", os.MFD_CLOEXEC)
    try:
        os.pwrite(fd, text, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _read(message: int, uffd: int, pidfd: int) -> Frame | None:
    values = json.loads(os.pread(message, os.fstat(message).st_size, 0))
    if values["version"] != _VERSION:
        _log.error("the message of a VM was kept by another version of vmmswap: its guest is not served")
        for fd in (uffd, pidfd):
            os.close(fd)
        return None
    peer = Peer(pidfd, values["pid"], values["uid"], values["gid"])
    return Frame(values["text"].encode(), OwnedFds((uffd,)), OwnedFds((pidfd,)), peer)
