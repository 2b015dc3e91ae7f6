# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process has open, found without touching what its owner controls.

A fetched fd (pidfd_getfd) must be closed again, and that may wait for ever: for a FUSE server's answer to the
flush, or for a TCP socket that lingers, if the process has closed it meanwhile. stat() may wait for a FUSE
server, too. So fdinfo, which the kernel writes itself, decides what is fetched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmmswap.attach.target import Target
from vmmswap.linux.mounts import read_mounts
from vmmswap.linux.process import pidfd_getfd

_SERVED_ELSEWHERE = ("fuse", "nfs", "cifs", "smb", "9p", "ceph", "afs", "autofs")  # types of file systems


@dataclass(frozen=True, slots=True)
class _Info:
    mount_id: int
    inode: int  # -1: an old kernel does not tell


def fd_numbers(target: Target) -> list[int]:
    """The fds that the process has open, or all that it might."""
    try:
        return sorted(int(path.name) for path in Path(f"/proc/{target.pid}/fdinfo").iterdir())
    except OSError:
        return list(range(target.fd_limit))


def fd_links(target: Target) -> Iterator[tuple[int, str]]:
    """Each fd's number, and what it is of.

    Without the target's uid /proc/PID/fd is closed even to CAP_SYS_PTRACE: then each fd that is safe to close
    is fetched and looked at. The others are of nothing that attach asks about.
    """
    safe: frozenset[int] | None = None
    for number in fd_numbers(target):
        try:
            yield number, str(Path(f"/proc/{target.pid}/fd/{number}").readlink())
        except PermissionError:
            safe = _safe_mounts(target.pid) if safe is None else safe
            info = _info_of(target.pid, number)
            if info is not None and info.mount_id in safe and (link := _link_by_getfd(target, number)):
                yield number, link
        except OSError:
            continue  # closed meanwhile


def fds_of_inode(target: Target, inode: int) -> Iterator[int]:
    """Duplicates of the process's fds that are of a file with this inode number, on whatever file system
    that closes files at once. They are the caller's.
    """
    safe: frozenset[int] | None = None
    for number in fd_numbers(target):
        info = _info_of(target.pid, number)
        if info is None or info.inode not in (inode, -1):
            continue
        safe = _safe_mounts(target.pid) if safe is None else safe
        if info.mount_id not in safe:
            continue
        try:
            yield pidfd_getfd(target.pidfd, number)
        except OSError:
            continue


def _info_of(pid: int, number: int) -> _Info | None:
    try:
        fields = _parse(Path(f"/proc/{pid}/fdinfo/{number}").read_text(errors="replace"))
    except OSError:
        return None
    return _Info(int(fields.get("mnt_id", -1)), int(fields.get("ino", -1)))


def _parse(text: str) -> Mapping[str, str]:
    """The kernel's own lines come first, those of a driver after them."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key, value.strip())
    return fields


def _safe_mounts(pid: int) -> frozenset[int]:
    """Of mounts whose files can be closed at once: anonymous inodes, memfds, and all that no server answers
    for.
    """
    found = set()
    for own in (os.eventfd(0, os.EFD_CLOEXEC), os.memfd_create("vmmswap mount", os.MFD_CLOEXEC)):
        try:
            if info := _info_of(os.getpid(), own):
                found.add(info.mount_id)
        finally:
            os.close(own)
    found |= {m.mount_id for m in read_mounts(pid) if not m.kind.startswith(_SERVED_ELSEWHERE)}
    return frozenset(found)


def _link_by_getfd(target: Target, number: int) -> str | None:
    try:
        fd = pidfd_getfd(target.pidfd, number)
    except OSError:
        return None
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    finally:
        os.close(fd)
