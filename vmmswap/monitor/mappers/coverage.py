# SPDX-License-Identifier: GPL-2.0-or-later
"""Who maps the guest's memory, against who is served: before memory leaves, and to find the pids of forked
children.

A process that maps guest memory without a userfaultfd reads zeros where memory is out, and what it reads so
becomes true for all. That holds for a private mapping of the memory's file as well, which no userfaultfd can
serve. The kernel reports a fork without a pid, so a child's is found here: it maps the memory at its
parent's addresses. All of this reads /proc and may wait for a lock of the VM's: call it on a thread.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmmswap.engine import Holder, Mapper, MapperWatch, Range, holders_of, mappers_of, registered_buffer_in
from vmmswap.errors import NotSupportedError, VmmswapError
from vmmswap.handoff import locked
from vmmswap.handoff.maps import flags_of_mappings
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.linux.files import FileId, file_id
from vmmswap.linux.maps import REGISTERED_MISSING
from vmmswap.linux.process import is_same_memory
from vmmswap.monitor.keep.manifest import RegionRecord
from vmmswap.monitor.mappers.placement import end_of, has_all
from vmmswap.monitor.spoiled import How, SpoiledError, Spoiler
from vmmswap.monitor.vm import Vm


@dataclass(frozen=True, slots=True)
class ServedProcess:
    """A served process, or a part of one: a process has one of these for each of its userfaultfds. ranges:
    where it has guest memory.
    """

    process_id: int
    pid: int  # 0: unknown
    ranges: tuple[Range, ...]

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The addresses of its ranges: (start, end)."""
        return tuple((item.addr, end_of(item)) for item in self.ranges)


@dataclass(frozen=True, slots=True)
class Question:
    """What a look needs to know of a VM, as of the moment of asking."""

    known: tuple[ServedProcess, ...]
    memfds: tuple[int, ...]
    regions: tuple[RegionRecord, ...]  # memfd counts `memfds`


@dataclass(frozen=True, slots=True)
class MappedRange:
    """A place where guest memory is mapped, in any process, served or not."""

    pid: int
    range: Range

    @property
    def addr(self) -> int:
        return self.range.addr

    @property
    def end(self) -> int:
        return end_of(self.range)


@dataclass(frozen=True, slots=True)
class Picture:
    """known: the served processes at the time of the look. pids: of forked children that had none before, by
    the engine's number.
    """

    known: tuple[ServedProcess, ...]
    pids: dict[int, int]
    mapped: tuple[MappedRange, ...]  # all shared mappings
    strangers: tuple[MappedRange, ...]  # shared mappings of processes that are not served
    private: tuple[MappedRange, ...]  # private mappings, of any process
    unreadable: tuple[int, ...]  # pids whose maps we may not read


def question_of(vm: Vm) -> Question:
    known = tuple(
        ServedProcess(process.process_id, process.pid, process.ranges) for process in vm.processes.values()
    )
    if not vm.backing.others_may_map:
        return Question(known, (), ())
    numbers = sorted(vm.memfds)
    regions = tuple(
        RegionRecord(item.addr, item.page_idx, item.pages, numbers.index(item.memfd), item.offset_bytes)
        for item in vm.manifest.regions
    )
    return Question(known, tuple(vm.memfds[number] for number in numbers), regions)


def look(question: Question, watch: MapperWatch | None = None) -> Picture:
    """Look once at all processes of the host; with a watch, only at those that have changed since its last
    look.
    """
    found = mappers_of(question.memfds) if watch is None else watch.look(question.memfds)
    return _picture(question, *found)


def look_at(question: Question, pids: Collection[int]) -> Picture:
    """Do the same for these processes only, so that no other process decides how long that takes."""
    return _picture(question, *mappers_of(question.memfds, pids))


def _picture(question: Question, mappings: Sequence[Mapper], unreadable: Sequence[int]) -> Picture:
    mapped, private = (
        [
            one
            for mapping in mappings
            if mapping.is_private is is_private
            for one in _mapped_ranges(mapping, question.regions)
        ]
        for is_private in (False, True)
    )
    pids = _match(question.known, mapped)
    served = _served_by_pid(question.known, pids)
    strangers = tuple(one for one in mapped if not _is_served(one, served))
    return Picture(question.known, pids, tuple(mapped), strangers, tuple(private), tuple(unreadable))


def _served_by_pid(known: Sequence[ServedProcess], pids: dict[int, int]) -> dict[int, list[Range]]:
    """All that a process is served with, by any of its userfaultfds."""
    together: dict[int, list[Range]] = {}
    for item in known:
        together.setdefault(item.pid or pids.get(item.process_id, 0), []).extend(item.ranges)
    return together


def _mapped_ranges(mapping: Mapper, regions: Sequence[RegionRecord]) -> Iterator[MappedRange]:
    """Return the parts of a mapping that show registered memory: a memfd may hold more than that."""
    for region in regions:
        if region.memfd != mapping.file_idx:
            continue
        start = max(mapping.offset_bytes, region.offset_bytes)
        end = min(mapping.offset_bytes + mapping.size_bytes, region.offset_bytes + region.pages * PAGE_SIZE)
        if start < end:
            to_addr = mapping.addr - mapping.offset_bytes
            page_idx = region.page_idx + (start - region.offset_bytes) // PAGE_SIZE
            yield MappedRange(mapping.pid, Range(start + to_addr, page_idx, (end - start) // PAGE_SIZE))


def spans_of(mapped: Iterable[MappedRange]) -> list[tuple[int, int, int]]:
    """Return where guest memory is mapped: (pid, start, end)."""
    return [(one.pid, one.addr, one.end) for one in mapped]


def check_not_locked(mapped: Iterable[MappedRange]) -> None:
    """NotSupportedError if a process has locked guest memory into RAM. Waits for mmap locks: call it on a
    thread.
    """
    by_pid: dict[int, list[tuple[int, int]]] = {}
    for one in mapped:
        by_pid.setdefault(one.pid, []).append((one.addr, one.end))
    for pid, spans in by_pid.items():
        try:
            locked.check_not_locked(pid, spans)
        except NotSupportedError:
            if Path(f"/proc/{pid}").exists():  # else it has ended meanwhile
                raise


def _match(known: Sequence[ServedProcess], mapped: Sequence[MappedRange]) -> dict[int, int]:
    """Find pids for children without one: processes that have all their guest memory where the child must
    have it. Children of one parent look the same, and it does not matter which is which.
    """
    taken = {item.pid for item in known if item.pid}
    candidates: dict[int, list[MappedRange]] = {}
    for one in mapped:
        if one.pid not in taken and not any(_same_memory(one.pid, other) for other in taken):
            candidates.setdefault(one.pid, []).append(one)
    nameless = [item for item in known if not item.pid]
    found: dict[int, int] = {}
    for pid, own in sorted(candidates.items()):
        for item in _fitting(nameless, own):
            found[item.process_id] = pid
            nameless.remove(item)
    return found


def _fitting(nameless: Sequence[ServedProcess], mapped: Sequence[MappedRange]) -> list[ServedProcess]:
    """Return what can be the process that maps these pieces: one entry, or, if its parent has several
    userfaultfds, one for each of them.
    """
    own = [one.range for one in mapped]
    for item in nameless:
        if has_all(item.ranges, own):
            return [item]
    parts = {item.ranges: item for item in reversed(nameless) if item.ranges and has_all(own, item.ranges)}
    together = [part for ranges in parts for part in ranges]
    return list(parts.values()) if has_all(together, own) else []


def _is_served(one: MappedRange, served: dict[int, list[Range]]) -> bool:
    own = served.get(one.pid)
    if own is not None:
        return has_all(own, [one.range])
    return any(_same_memory(one.pid, pid) and has_all(served[pid], [one.range]) for pid in served if pid)


def find_unregistered(question: Question) -> list[int]:
    """Return the processes, by the engine's number, that map guest memory where they should but have it
    registered with no userfaultfd. Walks their page tables: some milliseconds for a resident GiB.
    """
    files = {file_id(fd) for fd in question.memfds}
    return [item.process_id for item in question.known if item.pid and _has_unregistered(item, files)]


def _has_unregistered(known: ServedProcess, files: Container[FileId]) -> bool:
    """Check only mappings of the guest's files: something else may be there by now."""
    try:
        for mapping, flags in flags_of_mappings(known.pid):
            is_guest = mapping.file in files and any(mapping.overlaps(*span) for span in known.spans)
            if is_guest and REGISTERED_MISSING not in flags:
                return True
    except VmmswapError:
        pass  # it has ended
    return False


def _same_memory(pid: int, other: int) -> bool:
    """True if both share one address space, as a child of vfork() and its parent do until it calls exec."""
    if pid == other:
        return True
    try:
        return is_same_memory(pid, other)
    except OSError:
        return False


def shows_mappings(pid: int) -> bool:
    """True if the process's mappings can be read. If not, it may have a mapping that is not found."""
    try:
        with Path(f"/proc/{pid}/maps").open("rb") as maps:
            return bool(maps.read(1))
    except OSError:
        return False


def name_of(pid: int) -> str:
    """Name a process for people: pid and command."""
    try:
        return f"{pid} ({Path(f'/proc/{pid}/comm').read_text(errors='replace').strip()})"
    except OSError:
        return str(pid)


def stranger_error(stranger: MappedRange) -> SpoiledError:
    return SpoiledError(
        Spoiler(stranger.pid, How.MAPS),
        f"process {name_of(stranger.pid)} maps guest memory at {stranger.addr:#x} without a userfaultfd, and"
        " would read zeros there: have the VMM send add-process for it, or end it",
    )


def other_holders(question: Question, manager: int, holders: Sequence[Holder] | None = None) -> list[Holder]:
    """Return who has the memory's files open without being served. An open file changes nothing, but reads of
    a hole through it give zeros. manager: the pid of who keeps fds for us, 0 for nobody. holders: who has
    them open, if that is known.
    """
    known = {item.pid for item in question.known}
    kept = len(question.memfds)  # the manager has each of them once, for us
    found = []
    for holder in holders_of(question.memfds) if holders is None else holders:
        if holder.pid == manager and kept:
            kept -= 1
        elif holder.pid not in known:
            found.append(holder)
    return found


def private_error(one: MappedRange) -> SpoiledError:
    return SpoiledError(
        Spoiler(one.pid, How.MAPS_PRIVATELY),
        f"process {name_of(one.pid)} maps guest memory privately at {one.addr:#x} (MAP_PRIVATE, as clones of"
        " a VM do). Where memory is out it would read zeros, and the VM's own memory would be zeros from"
        " then on. End the process, or give it a copy of the memory",
    )


def check_buffers(question: Question) -> None:
    """NotSupportedError if an io_uring has buffers registered in guest memory: those pages can never be
    swapped out.
    """
    ranges = [
        (item.pid, start, end - start) for item in question.known if item.pid for start, end in item.spans
    ]
    if reason := registered_buffer_in(ranges):
        raise NotSupportedError(reason)
