# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM whose memory is private and comes from the memory file of a snapshot, as Firecracker's does.

There is no memfd: the file is the store, the page map says what the guest has had, and only the process's
page tables know what is resident. Nothing can go out again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from vmmswap import config
from vmmswap.engine import Range
from vmmswap.errors import InvalidRegionError, NotSupportedError, StorageFailedError
from vmmswap.handoff.region import PAGE_SIZE, Region
from vmmswap.linux.maps import anonymous_kib_of_mappings
from vmmswap.linux.process import status_of


def refuse_to_go_out() -> None:
    """Raise what Enable and Trim answer."""
    raise NotSupportedError(
        "this VM's memory is private and came from a snapshot: Disable swaps it in, but nothing of it can"
        " be swapped out, because no memfd holds it. For that, use a VMM with memfd memory that sends"
        " vmmswap's own register message"
    )


def configured_file(name: str, config_path: Path | None) -> str:
    """Read SnapshotFile= as it is now: a monitor may have waited for long, and the file that was set at its
    start may belong to another snapshot. NotSupportedError if it is not set, ConfigError if there is a
    mistake.
    """
    path = config.load(name, None if config_path is None else [config_path]).snapshot_file
    if not path:
        raise NotSupportedError(
            "Firecracker's message needs the snapshot's memory file: set SnapshotFile= for this VM, or use"
            " vmmswap's own message"
        )
    return path


def open_file(path: str, regions: Sequence[Region], check_reader: Callable[[int], None]) -> int:
    """Open the memory file for reading. StorageFailedError, or InvalidRegionError if it is too short.
    check_reader raises if the caller may not have its contents; nothing is said about the file before.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise StorageFailedError(
            f"SnapshotFile={path} cannot be opened: {error.strerror}: the unit's sandbox must see it, and"
            " vmmswap's user may read it"
        ) from None
    try:
        check_reader(fd)
        _check_file(fd, path, regions)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_file(fd: int, path: str, regions: Sequence[Region]) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise StorageFailedError(
            f"SnapshotFile={path} is not a regular file: give the snapshot's memory file"
        )
    for idx, region in enumerate(regions):
        if region.end_offset > status.st_size:
            raise InvalidRegionError(
                f"regions[{idx}].offset: {region.offset_bytes} + size {region.size_bytes} is past the end of"
                f" SnapshotFile={path}, which has {status.st_size} bytes: is it this snapshot's memory file?"
            )


class Resident:
    """How much of a process's private guest memory is on RAM, at a cost that does not grow with it.

    The kernel counts a process's anonymous pages without looking at them, but only all together. What is not
    guest memory is found once, page by page, and taken to stay what it is.
    """

    def __init__(self, pid: int, ranges: Sequence[Range]) -> None:
        self._pid = pid
        self._ranges = ranges
        self._total_pages = sum(item.pages for item in ranges)
        self._besides_kib = 0
        self.needs_look = True

    def look(self) -> None:
        """Walk over all resident pages, and wait for the process's mmap lock: on a thread."""
        self._besides_kib = _anonymous_kib(self._pid) - _anonymous_kib_of(self._pid, self._ranges)
        self.needs_look = False

    def pages(self) -> int:
        """0 once the process has ended. Before look() has ended, what the VMM has besides its guest's memory
        is counted too. Before Linux 6.16 the kernel's sum is some pages off for each CPU.
        """
        pages = (_anonymous_kib(self._pid) - self._besides_kib) * 1024 // PAGE_SIZE
        return max(0, min(pages, self._total_pages))


def _anonymous_kib(pid: int) -> int:
    try:
        return int(status_of(pid).get("RssAnon", "0").split()[0])
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0


def _anonymous_kib_of(pid: int, ranges: Sequence[Range]) -> int:
    """The kernel may have merged a range with a mapping next to it, and then counts those pages too."""
    spans = [(item.addr, item.addr + item.pages * PAGE_SIZE) for item in ranges]
    try:
        return sum(
            kib
            for mapping, kib in anonymous_kib_of_mappings(pid)
            if any(mapping.overlaps(*span) for span in spans)
        )
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
