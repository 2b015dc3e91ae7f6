# SPDX-License-Identifier: GPL-2.0-or-later
"""Private memory that a VMM hands over and moves itself: what it must be like.

Only a process itself can move its private pages (UFFDIO_MOVE), so a thread of the VMM does it, as a mailbox
asks: engine/src/linux/mailbox.h. All of this may wait for the mmap lock of the VMM: use a thread.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from vmmswap.errors import InvalidRegionError, NotSupportedError
from vmmswap.handoff import locked, maps
from vmmswap.handoff.region import Region
from vmmswap.linux import userfaultfd
from vmmswap.linux.maps import HUGETLB, LOCKED, NOT_FORKED, Mapping
from vmmswap.linux.process import thread_of_number
from vmmswap.linux.userfaultfd import Feature

MAILBOX_BYTES = 4096
_TID = struct.Struct("=I")  # of struct vmmswap_mailbox
_TID_OFFSET_BYTES = 16


def check_kernel() -> None:
    """NotSupportedError before Linux 6.8."""
    if Feature.MOVE not in userfaultfd.kernel_features():
        raise NotSupportedError(
            "regions[0].private: this kernel cannot move private memory (UFFDIO_MOVE, Linux 6.8): use memfds"
        )


def check_mailbox(fd: int, field: str) -> None:
    """InvalidRegionError unless it is a memfd whose size cannot change under us."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        size_bytes = os.fstat(fd).st_size
    except OSError:
        seals, size_bytes = 0, 0
    if size_bytes != MAILBOX_BYTES or not seals & fcntl.F_SEAL_SHRINK:
        raise InvalidRegionError(
            f"{field}: the mailbox is not a memfd of {MAILBOX_BYTES} bytes that is sealed with F_SEAL_SHRINK"
        )


def has_mover(pid: int, mailbox: int) -> bool:
    """False: the thread that moves pages has ended, or has yet to begin."""
    tid = _tid_of(mailbox)
    return bool(tid) and Path(f"/proc/{pid}/task/{tid}").exists()


def note_mover(pid: int, mailbox: int) -> None:
    """Note the number that the thread has for us: the VMM wrote the one that it has there."""
    tid = thread_of_number(pid, _tid_of(mailbox))
    if tid is not None:
        os.pwrite(mailbox, _TID.pack(tid), _TID_OFFSET_BYTES)


def _tid_of(mailbox: int) -> int:
    (tid,) = _TID.unpack(os.pread(mailbox, _TID.size, _TID_OFFSET_BYTES))
    return int(tid)


def check_pagemap(fd: int, pid: int, field: str) -> None:
    """InvalidRegionError unless it is a file `pagemap` of a /proc that the process sees. No file system is
    asked about it: its server may be the VMM's.
    """
    mount = _fdinfo_of(fd).get("mnt_id", "")
    name = Path(f"/proc/self/fd/{fd}").readlink().name
    if name != "pagemap" or mount not in _mounts_of_proc(pid):
        raise InvalidRegionError(f"{field}: {name[:60]!a} is not the VMM's own /proc/self/pagemap")


def _mounts_of_proc(pid: int) -> set[str]:
    """Ids of mounts, which are the kernel's and the same everywhere."""
    found = set()
    for line in Path(f"/proc/{pid}/mountinfo").read_text(errors="replace").splitlines():
        of_mount, _, of_file_system = line.partition(" - ")
        if of_file_system.startswith("proc "):
            found.add(of_mount.split()[0])
    return found


def _fdinfo_of(fd: int) -> dict[str, str]:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def check_memory(pid: int, regions: Sequence[Region]) -> None:
    """InvalidRegionError or NotSupportedError unless all of it can be moved, and no child inherits it."""
    mappings = maps.read_maps(pid)
    for idx, region in enumerate(regions):
        maps.check_private(
            mappings, f"regions[{idx}]", region, advice="shared memory is handed over by its memfd"
        )
    for mapping, flags in maps.flags_of_mappings(pid):
        for idx, region in enumerate(regions):
            if mapping.overlaps(region.addr, region.end):
                _check_flags(pid, f"regions[{idx}].base_host_virt_addr", mapping, flags)


def _check_flags(pid: int, field: str, mapping: Mapping, flags: frozenset[bytes]) -> None:
    if LOCKED in flags:
        raise locked.locked_error(pid, mapping.start)
    if HUGETLB in flags:
        raise InvalidRegionError(
            f"{field}: {mapping.place} is hugetlb memory: huge pages cannot be swapped out"
        )
    if mapping.perms[:2] != "rw":
        raise InvalidRegionError(f"{field}: {mapping.place} is not readable and writable")
    if NOT_FORKED not in flags:
        raise NotSupportedError(
            f"{field}: {mapping.place} goes to forked children: call madvise(MADV_DONTFORK) for it, because a"
            " child's copy of what is out cannot be told from the VMM's own"
        )
