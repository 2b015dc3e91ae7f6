# SPDX-License-Identifier: GPL-2.0-or-later
"""Where to test a userfaultfd (see `probe`): the dummy page, else holes in guest memory; and what follows."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vmmswap.engine import is_page_there
from vmmswap.errors import InvalidRegionError, NotSupportedError
from vmmswap.handoff import maps
from vmmswap.handoff.probe import Verdict, probe
from vmmswap.handoff.region import PAGE_SIZE, Region

_NOWHERE = 0  # nothing is mapped there
_MAX_TRIES = 3  # with pages of guest memory, which the guest may fill just before the test

PathOf = Callable[[Region], str]  # where a region's memfd can be opened anew


def map_file_of(pid: int) -> PathOf:
    """The memfds of another process, through its mappings. Opening them needs CAP_CHECKPOINT_RESTORE."""

    def path_of(region: Region) -> str:
        for mapping in maps.read_maps(pid):
            if mapping.start <= region.addr < mapping.end:
                return f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"
        raise FileNotFoundError(f"nothing is mapped at {region.addr:#x} any more")

    return path_of


def prove(
    uffd: int,
    pid: int,
    dummy_page: int | None,
    regions: Sequence[Region],
    path_of: PathOf,
) -> bool:
    """True if the uffd was seen to stop kernel-mode accesses of this process; refused if seen not to."""
    refused = Verdict.UNKNOWN
    for addr, field, is_known_empty in _empty_pages(pid, dummy_page, regions, path_of):
        match probe(uffd, pid, addr, field):
            case Verdict.KERNEL_FAULTS:
                return True
            case Verdict.USER_MODE_ONLY:
                raise NotSupportedError(
                    "fds[0]: the userfaultfd is for user mode only: KVM, vhost and io_uring would fail."
                    " Open it without UFFD_USER_MODE_ONLY, or from /dev/userfaultfd"
                )
            case Verdict.NO_FAULT if is_known_empty:
                refused = Verdict.NO_FAULT
            case Verdict.NO_FAULT | Verdict.UNKNOWN:
                pass
    if refused is Verdict.NO_FAULT:
        raise InvalidRegionError(
            f"fds[0]: the userfaultfd is not of process {pid}: its pages can be read without it"
        )
    return False


def owns(uffd: int, pid: int, dummy_page: int) -> bool:
    """Whether the uffd is this process's, which the peer may know nothing else about: whatever is at that
    address, a no takes the same steps and says the same. A page that has contents is not read.
    """
    read_addr = _NOWHERE if _may_have_contents(pid, dummy_page) else dummy_page
    return probe(uffd, pid, dummy_page, "dummy_page", read_addr=read_addr) is Verdict.KERNEL_FAULTS


def _empty_pages(
    pid: int, dummy_page: int | None, regions: Sequence[Region], path_of: PathOf
) -> Iterator[tuple[int, str, bool]]:
    """Addresses of pages without contents, each with the field that it is from: the dummy page, else holes.
    And whether that is known: of another user's process the unit's sandbox does not let us ask.
    """
    if dummy_page is not None:
        populated = _is_populated(pid, dummy_page)
        if not populated:
            yield dummy_page, "dummy_page", populated is False
        if populated is False:
            return
    for idx, region in enumerate(regions[:_MAX_TRIES]):
        offset = _find_hole(region, path_of)
        if offset is not None:
            yield region.addr + offset - region.offset_bytes, f"regions[{idx}].base_host_virt_addr", True


def _is_populated(pid: int, addr: int) -> bool | None:
    """True if a page is present or swapped, by bits 63 and 62 of its pagemap entry. None if that may not be
    read: the file has mode 0400, so without CAP_DAC_OVERRIDE only a user's own processes can be asked about.
    """
    try:
        with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
            pagemap.seek(addr // PAGE_SIZE * 8)
            entry = int.from_bytes(pagemap.read(8), "little")
    except PermissionError:
        return None
    except OSError:
        return True
    return entry >> 62 != 0


def _may_have_contents(pid: int, addr: int) -> bool:
    """The same as far as it can be told of any user's process: a page that is swapped out may not be seen."""
    populated = _is_populated(pid, addr)
    if populated is not None:
        return populated
    try:
        return is_page_there(pid, addr)
    except OSError:
        return True


def _find_hole(region: Region, path_of: PathOf) -> int | None:
    """The offset of a page in the middle of the region's first hole, None if there is none.

    The file is opened anew: lseek on the fd that the VMM sent would move the VMM's file position too.
    """
    try:
        fd = os.open(path_of(region), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        start = os.lseek(fd, region.offset_bytes, os.SEEK_HOLE)
        end = min(_seek_data(fd, start), region.end_offset)
    finally:
        os.close(fd)
    if start >= region.end_offset:
        return None
    return start + (end - start) // 2 // PAGE_SIZE * PAGE_SIZE


def _seek_data(fd: int, offset: int) -> int:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data from there to the end of the file
            return 1 << 63
        raise
