# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that a VMM reads into private memory in a way that the kernel does not see when it moves a page.

UFFDIO_MOVE refuses pages that are pinned (FOLL_PIN), and moves those that a transfer holds by a plain
reference (FOLL_GET): what the disk then brings is in a page that is nobody's any more, and the guest reads
what was there before. Most file systems and block devices pin. NFS and Ceph do not when they read with
O_DIRECT (fs/nfs/direct.c, fs/ceph/file.c: iov_iter_get_pages). Shared memory needs none of this: there the
page check sees every reference.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from vmmswap.errors import NotSupportedError
from vmmswap.linux.mounts import Mount, read_mounts

_HOLD_WITHOUT_A_PIN = frozenset({"nfs", "nfs4", "ceph"})
_O_DIRECT = os.O_DIRECT


@dataclass(frozen=True, slots=True)
class DirectFile:
    fd: int
    mount: Mount


def check_direct_files(pid: int) -> None:
    """NotSupportedError if the process has a file open with O_DIRECT on such a file system. Asks no file
    system: its server may be the VMM's, or not answer.
    """
    found = next(iter(direct_files(pid, _HOLD_WITHOUT_A_PIN)), None)
    if found is None:
        return
    raise NotSupportedError(
        f"process {pid} has fd {found.fd} open with O_DIRECT (QEMU: cache=none) on {found.mount.kind} at"
        f" {found.mount.point}: the kernel does not see its reads into private memory when it moves a page."
        " Use another cache mode, or shared memory (QEMU: -object memory-backend-memfd,share=on)"
    )


def direct_files(pid: int, kinds: Collection[str]) -> list[DirectFile]:
    """The files that the process has open with O_DIRECT on file systems of these kinds. One whose mount is in
    no mount namespace that can be asked (the process's, ours, that of process 1) is left out.
    """
    try:
        numbers = sorted(int(path.name) for path in Path(f"/proc/{pid}/fdinfo").iterdir())
    except OSError:  # it has ended
        return []
    direct = {number: mount for number in numbers if (mount := _mount_of_direct(pid, number)) is not None}
    mounts = _mounts(pid) if direct else {}
    return [
        DirectFile(number, mounts[mount])
        for number, mount in direct.items()
        if mount in mounts and mounts[mount].kind in kinds
    ]


def _mount_of_direct(pid: int, number: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/fdinfo/{number}").read_text(errors="replace")
    except OSError:  # closed meanwhile
        return None
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key, value.strip())  # the kernel's own lines come first, a driver's after them
    if not int(fields.get("flags", "0"), 8) & _O_DIRECT:
        return None
    return int(fields.get("mnt_id", "-1"))


def _mounts(pid: int) -> dict[int, Mount]:
    found: dict[int, Mount] = {}
    for namespace in (1, None, pid):
        with contextlib.suppress(OSError):
            found |= {mount.mount_id: mount for mount in read_mounts(namespace)}
    return found
