# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of a process's mappings are guest memory, and the files behind them.

Guest memory is what is large, shared, writable and of shmem: a memfd, a file on tmpfs, a shared anonymous
mapping. If there is more memory that looks like a guest's and is private, that is the guest's memory instead:
`private_memory`. Every large mapping that is not is told with the reason, because that reason is what an
operator has to change.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vmmswap.attach import private_memory
from vmmswap.attach.fd_table import fds_of_inode
from vmmswap.attach.ram_blocks import RamBlocks
from vmmswap.attach.target import Target
from vmmswap.errors import AccessDeniedError, InvalidRegionError, NotSupportedError, VmmswapError
from vmmswap.handoff import fds
from vmmswap.handoff.messages import MAX_REGIONS
from vmmswap.handoff.region import PAGE_SIZE, Region, is_private
from vmmswap.linux.files import FileId, file_id_unasked
from vmmswap.linux.maps import Mapping, joined, read_mappings
from vmmswap.linux.mounts import read_mounts
from vmmswap.linux.owned import OwnedFds

MIN_BYTES = 16 << 20  # smaller shared mappings are rings, logs, video memory
_SHOWN = 12  # mappings in a message
_PAGE_MAP = "/memfd:vmmswap page map"

_AS_ROOT = "run `vmmswap-monitor NAME --attach PID` as root"
QEMU_ADVICE = (
    "QEMU: -object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem; libvirt:"
    " <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
)


class _MappedTwiceError(NotSupportedError):
    """Guest memory that is taken already, at another address."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A mapping that was looked at, whether it was taken, and why or why not. is_alias: it shows memory that
    was taken at another address.
    """

    mapping: Mapping
    taken: bool
    reason: str
    is_alias: bool = False

    def __str__(self) -> str:
        return f"{self.mapping}: {'taken' if self.taken else 'left'}: {self.reason}"


Span = tuple[int, int]  # start and end, of addresses or of offsets in a file
KnownParts = dict[FileId, list[Span]]  # what of each file is guest memory, by offsets


@dataclass(frozen=True, slots=True)
class Found:
    """Guest memory. Region.memfd counts memfds, which the finder's caller owns; of private memory there are
    none.
    """

    memfds: OwnedFds
    regions: tuple[Region, ...]
    candidates: tuple[Candidate, ...]

    @property
    def is_private(self) -> bool:
        return bool(self.regions) and is_private(self.regions)


def mappings_of(pid: int) -> list[Mapping]:
    """A VMM's mappings, as it made them. AccessDeniedError, or NotSupportedError if it has ended."""
    try:
        return joined(read_mappings(pid))
    except PermissionError:
        raise AccessDeniedError(
            f"/proc/{pid}/maps may not be read: run the monitor as root or with CAP_SYS_PTRACE"
        ) from None
    except (FileNotFoundError, ProcessLookupError):
        raise NotSupportedError(f"process {pid} has ended") from None


def find(target: Target, by_hand: Sequence[tuple[int, int]] = (), blocks: RamBlocks | None = None) -> Found:
    """The guest memory of a VMM: all that looks like it, or the mappings at these (start, end) addresses.
    blocks: what QEMU says, which chooses among private mappings.

    NotSupportedError if there is none, with what was seen instead; InvalidRegionError for a wrong choice by
    hand.
    """
    if by_hand:
        mappings = _chosen(mappings_of(target.pid), by_hand)
    else:
        mappings = [
            mapping
            for mapping in mappings_of(target.pid)
            if mapping.size_bytes >= MIN_BYTES and mapping.perms[:3] != "---"
        ]
    if private := _find_private(target, mappings, blocks, is_by_hand=bool(by_hand)):
        return private
    candidates: list[Candidate] = []
    regions: list[Region] = []
    with OwnedFds() as owned:
        files: dict[FileId, int] = {}  # index in owned
        for mapping in mappings:
            try:
                region = _take(target, mapping, owned, files, regions)
            except VmmswapError as error:
                candidates.append(_left(mapping, error))
            else:
                regions.append(region)
                reason = "chosen by hand" if by_hand else "shared, writable and large"
                candidates.append(Candidate(mapping, True, reason))
        _check_found(target, regions, candidates, is_by_hand=bool(by_hand))
        return Found(OwnedFds(owned.release()), tuple(regions), tuple(candidates))


def _find_private(
    target: Target, mappings: Sequence[Mapping], blocks: RamBlocks | None, *, is_by_hand: bool
) -> Found | None:
    """None if guest memory is shared, or there is none. mappings: of which all were chosen, or may be."""
    if not any(private_memory.may_be(mapping) for mapping in mappings):
        return None
    seen = private_memory.find(target, PAGE_SIZE if is_by_hand else MIN_BYTES)
    if is_by_hand:
        seen = [_part(mapping, seen) for mapping in mappings]
    elif blocks is not None:
        seen = blocks.choose(seen)
    regions = [item.region for item in seen if not item.refusal]
    private_bytes = sum(region.size_bytes for region in regions)
    shared_bytes = sum(item.size_bytes for item in mappings if item.perms[3] == "s")
    if not is_by_hand and (shared_bytes >= private_bytes if shared_bytes else not seen):
        return None
    candidates = [Candidate(item.mapping, not item.refusal, item.refusal or item.note) for item in seen]
    _check_found(target, regions, candidates, is_by_hand=is_by_hand)
    return Found(OwnedFds(), tuple(regions), tuple(candidates))


def _part(chosen: Mapping, seen: Iterable[private_memory.Seen]) -> private_memory.Seen:
    for item in seen:
        if item.mapping.start <= chosen.start and chosen.end <= item.mapping.end:
            return private_memory.Seen(chosen, item.refusal)
    return private_memory.Seen(chosen, "not private anonymous memory, as other regions that were given are")


def find_further(target: Target, known: KnownParts) -> Found:
    """What looks like guest memory besides the known parts of files, by the same rules; nothing is no error.

    NotSupportedError if any is mapped twice.
    """
    candidates: list[Candidate] = []
    regions: list[Region] = []
    with OwnedFds() as owned:
        files: dict[FileId, int] = {}
        for mapping in mappings_of(target.pid):
            if mapping.size_bytes < MIN_BYTES or mapping.perms[:3] == "---":
                continue
            for part in _without(mapping, known):
                try:
                    regions.append(_take(target, part, owned, files, regions))
                except VmmswapError as error:
                    candidates.append(_left(part, error))
                else:
                    candidates.append(Candidate(part, True, "shared, writable and large, and new"))
        _check_aliases(target, candidates)
        return Found(OwnedFds(owned.release()), tuple(regions), tuple(candidates))


def _without(mapping: Mapping, known: KnownParts) -> list[Mapping]:
    """What a mapping shows besides these parts of files."""
    left = [(mapping.offset_bytes, mapping.offset_bytes + mapping.size_bytes)]
    for part in known.get(mapping.file, ()):
        left = [span for before in left for span in _difference(before, part)]
    to_addr = mapping.start - mapping.offset_bytes
    return [
        Mapping(start + to_addr, end + to_addr, mapping.perms, start, mapping.file, mapping.path)
        for start, end in left
    ]


def _difference(span: Span, part: Span) -> list[Span]:
    (start, end), (part_start, part_end) = span, part
    spans = ((start, min(end, part_start)), (max(start, part_end), end))
    return [(first, last) for first, last in spans if first < last]


def _left(mapping: Mapping, error: VmmswapError) -> Candidate:
    return Candidate(mapping, False, error.message, isinstance(error, _MappedTwiceError))


def _chosen(mappings: Iterable[Mapping], spans: Sequence[tuple[int, int]]) -> list[Mapping]:
    chosen = []
    for start, end in spans:
        if start % PAGE_SIZE or end % PAGE_SIZE or start >= end:
            raise InvalidRegionError(f"region {start:#x}-{end:#x}: give page-aligned START-END")
        mapping = next(
            (mapping for mapping in mappings if mapping.start <= start and end <= mapping.end), None
        )
        if mapping is None:
            raise InvalidRegionError(
                f"region {start:#x}-{end:#x} is not one mapping of the process: see its maps"
            )
        offset_bytes = mapping.offset_bytes + start - mapping.start
        chosen.append(Mapping(start, end, mapping.perms, offset_bytes, mapping.file, mapping.path))
    return chosen


def _take(
    target: Target, mapping: Mapping, owned: OwnedFds, files: dict[FileId, int], regions: Sequence[Region]
) -> Region:
    """The region that a mapping makes. VmmswapError with the reason why it cannot be."""
    if mapping.path.startswith(_PAGE_MAP):
        raise NotSupportedError("vmmswap's own: this process is a monitor, not a VMM")
    if mapping.perms[3] != "s":
        raise NotSupportedError(
            "private, and other memory, which is shared, is the guest's"
            if mapping.is_anonymous
            else "mapped privately"
        )
    if mapping.perms[:2] != "rw":
        raise NotSupportedError("not readable and writable")
    if mapping.path.startswith(("/anon_hugepage", "/dev/hugepages/")):
        raise NotSupportedError("hugetlb: huge pages cannot be swapped out. Use normal pages")
    if mapping.file not in files:
        memfd = _open_file(target, mapping)
        try:
            fds.check_memfd(memfd, "file", mapping.offset_bytes + mapping.size_bytes)
        except VmmswapError:
            os.close(memfd)
            raise
        files[mapping.file] = len(owned)
        owned.add(memfd)
    region = Region(mapping.start, mapping.size_bytes, mapping.offset_bytes, files[mapping.file])
    for other in regions:
        if other.memfd == region.memfd and (
            other.offset_bytes < region.end_offset and region.offset_bytes < other.end_offset
        ):
            raise _MappedTwiceError(f"the same part of the file is mapped at {other.addr:#x} already")
    return region


def _open_file(target: Target, mapping: Mapping) -> int:
    """The file that maps showed and no other, with a file position of our own.

    Between maps and here the process may have mapped another file there, one that it may only read, or one
    whose server answers when it likes. So the file system is told by its number, which asks nobody; what is
    found is compared before it is opened; and that very thing is opened.
    """
    _check_shmem(target, mapping)
    for fd in _views(target, mapping):
        try:
            if file_id_unasked(fd) == mapping.file:
                return _reopen(fd)
        finally:
            os.close(fd)
    raise NotSupportedError(
        "the process holds no fd of it, and opening it through /proc/PID/map_files needs"
        f" CAP_CHECKPOINT_RESTORE, which the unit does not have: {_AS_ROOT}"
    )


def _check_shmem(target: Target, mapping: Mapping) -> None:
    if mapping.file.dev == _memfd_dev():
        return
    if mapping.path.startswith("/memfd:"):
        raise NotSupportedError(
            f"{mapping.path[:60]!a} is a hugetlb file: huge pages cannot be swapped out. Use normal pages"
        )
    kinds = {mount.kind for mount in read_mounts(target.pid) if mount.dev == mapping.file.dev}
    if kinds != {"tmpfs"}:
        raise NotSupportedError(f"{mapping.path[:60]!a} is neither a memfd nor a file on tmpfs")


def _memfd_dev() -> int:
    """Of the kernel's own tmpfs, which has all memfds and shared anonymous memory."""
    fd = os.memfd_create("vmmswap-dev", os.MFD_CLOEXEC)
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


def _views(target: Target, mapping: Mapping) -> Iterator[int]:
    """Fds, to be closed, of what may be the file behind a mapping."""
    # needs CAP_CHECKPOINT_RESTORE; the link is named after one line of maps, of which this may be several
    with suppress(OSError):
        for path in Path(f"/proc/{target.pid}/map_files").iterdir():
            start, end = (int(addr, 16) for addr in path.name.split("-"))
            if start <= mapping.start < end:
                yield os.open(path, os.O_PATH | os.O_CLOEXEC)
    yield from fds_of_inode(target, mapping.file.inode)


def _reopen(fd: int) -> int:
    """With a file position of our own, which the engine needs."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise NotSupportedError(
            f"the file may not be opened here ({error.strerror}): it is another user's, and the unit has no"
            f" CAP_DAC_OVERRIDE. Use a memfd, or {_AS_ROOT}"
        ) from None


def _check_found(
    target: Target, regions: Sequence[Region], candidates: Sequence[Candidate], *, is_by_hand: bool
) -> None:
    left = [candidate for candidate in candidates if not candidate.taken]
    if is_by_hand and left:
        advice = f". {QEMU_ADVICE}" if left[0].mapping.perms[3] == "p" else ""
        raise NotSupportedError(
            f"region {left[0].mapping.start:#x}-{left[0].mapping.end:#x}: {left[0].reason}{advice}"
        )
    _check_aliases(target, left)
    if len(regions) > MAX_REGIONS:
        raise NotSupportedError(
            f"{target} has {len(regions)} mappings of guest memory: at most {MAX_REGIONS} are supported"
        )
    if regions:
        return
    seen = "; ".join(f"{item.mapping}: {item.reason}" for item in _largest(left))
    if shared := [item for item in left if item.mapping.perms[3] == "s"]:
        raise NotSupportedError(
            f"{target} has shared memory that cannot be taken over:"
            f" {'; '.join(f'{item.mapping}: {item.reason}' for item in _largest(shared))}"
        )
    raise NotSupportedError(
        f"{target} has no guest memory that can be taken over. Mappings of {MIN_BYTES >> 20} MiB or more:"
        f" {seen or 'none'}. If one of them is the guest's, give it shared memory. {QEMU_ADVICE}"
    )


def _check_aliases(target: Target, candidates: Iterable[Candidate]) -> None:
    for item in candidates:
        if item.is_alias:
            raise NotSupportedError(f"{target} maps guest memory twice: {item}")


def _largest(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda item: -item.mapping.size_bytes)[:_SHOWN]
