# SPDX-License-Identifier: GPL-2.0-or-later
"""From a parsed message and its frame to a checked request.

All of it may wait for a peer's mmap lock: use a thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from vmmswap.engine import Mover
from vmmswap.errors import AccessDeniedError, InvalidRegionError, NotSupportedError, ProtocolError
from vmmswap.handoff import fds, maps, private
from vmmswap.handoff.locked import check_not_locked
from vmmswap.handoff.messages import (
    MAX_REGIONS,
    MAX_TOTAL_BYTES,
    AddProcess,
    AddRegion,
    Attach,
    FirecrackerRegister,
    Register,
    RemoveRegion,
    check_no_overlap,
)
from vmmswap.handoff.peer import Peer
from vmmswap.handoff.proof import PathOf, map_file_of, owns, prove
from vmmswap.handoff.receiver import Frame
from vmmswap.handoff.region import Region, is_private
from vmmswap.handoff.requests import (
    AddProcessRequest,
    AddRegionRequest,
    AttachRequest,
    FirecrackerRequest,
    Memory,
    ProcessMemory,
    RegisterRequest,
    RemoveRegionRequest,
)
from vmmswap.linux.access import User, may_trace
from vmmswap.linux.files import FileId, file_id
from vmmswap.linux.owned import OwnedFds
from vmmswap.linux.process import is_alive


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    pidfd: int
    uffd: int


def register(message: Register, frame: Frame, connection: int) -> RegisterRequest:
    if message.is_private:
        return _register_private(message, frame, connection)
    peer, memfds = frame.peer, tuple(frame.fds)[1:]
    memory = Memory(peer.pid, message.regions, _check_memfds(message.regions, memfds))
    check_no_overlap(memory.regions, memory.region_files)
    sender = _Process(peer.pid, peer.pidfd, frame.fds[0])
    with _unseen(peer, peer.pid):
        process = _check_process(sender, message, memory, _path_among(memfds))
    return RegisterRequest(
        _all_fds(frame), peer, process, memfds, memory, message.pins, message.qmp, connection
    )


def _register_private(message: Register, frame: Frame, connection: int) -> RegisterRequest:
    peer, (uffd, mailbox, pagemap) = frame.peer, tuple(frame.fds)
    private.check_kernel()
    private.check_mailbox(mailbox, "fds[1]")
    private.check_pagemap(pagemap, peer.pid, "fds[2]")
    info = fds.check_uffd(uffd)
    with _unseen(peer, peer.pid):
        private.check_memory(peer.pid, message.regions)
        private.note_mover(peer.pid, mailbox)
        dummy_page = message.dummy_page
        if dummy_page is not None and not maps.is_mapped(maps.read_maps(peer.pid), dummy_page):
            raise InvalidRegionError(f"dummy_page: {dummy_page:#x} is not mapped in the process")
        _check_alive(peer.pidfd, peer.pid)
        is_proven = prove(uffd, peer.pid, dummy_page, message.regions, _no_path)
    process = ProcessMemory(
        peer.pid, peer.pidfd, uffd, info, message.regions, dummy_page, is_proven, unlisted=()
    )
    memory = Memory(peer.pid, message.regions, ())
    return RegisterRequest(
        *(_all_fds(frame), peer, process, (), memory, message.pins, message.qmp, connection),
        Mover(peer.pid, mailbox, pagemap),
    )


def _no_path(_region: Region) -> str:
    """Private memory has no file in which a hole could be found: the dummy page is what is tested with."""
    raise FileNotFoundError


def add_process(
    message: AddProcess, frame: Frame, memory: Memory, served_pid: int | None
) -> AddProcessRequest:
    """served_pid: the process whose userfaultfd this is, if it is served already."""
    if memory.is_private or is_private(message.regions):
        raise NotSupportedError(
            "add-process: private memory is its process's alone; memory that others map is in a memfd"
        )
    pidfd = frame.fds[1]
    pid = fds.pid_of(pidfd, "fds[1]")
    if pid == os.getpid():
        raise ProtocolError("fds[1]: the pidfd is of the monitor itself")
    if served_pid not in (None, pid):
        raise ProtocolError(
            f"fds[0]: this userfaultfd is of process {served_pid}, and fds[1] is of {pid}: send one that"
            f" {pid} has made itself"
        )
    for idx, region in enumerate(message.regions):
        _check_registered(f"regions[{idx}]", region, memory)
    sent = _Process(pid, pidfd, frame.fds[0])
    path_of = None if served_pid else map_file_of(pid)
    if served_pid or may_trace(pid, _user(frame.peer)):
        with _unseen(frame.peer, pid):
            process = _check_process(sent, message, memory, path_of)
    else:
        _check_owns(sent, message, frame.peer)
        with _unseen(frame.peer, pid):
            process = _check_process(sent, message, memory, None)
    return AddProcessRequest(_all_fds(frame), frame.peer, process)


def _check_owns(process: _Process, message: AddProcess, peer: Peer) -> None:
    """Before anything of the process is looked at: that it has given its userfaultfd away shows that it wants
    to be added. AccessDeniedError, the same whatever its memory is like.
    """
    fds.check_uffd(process.uffd)
    dummy_page = message.dummy_page
    if dummy_page is None or not owns(process.uffd, process.pid, dummy_page):
        raise AccessDeniedError(
            f"fds[1]: uid {peer.uid} may not inspect process {process.pid}, and nothing shows that the"
            " userfaultfd is its own: send its dummy_page"
        )
    _check_alive(process.pidfd, process.pid)


def _user(peer: Peer) -> User:
    return User(peer.uid, peer.gid)


@contextmanager
def _unseen(peer: Peer, pid: int) -> Iterator[None]:
    """A process may run a set-uid program by now, of which the peer must learn nothing: not what is mapped
    where, nor which of the addresses are.
    """
    try:
        yield
    except (InvalidRegionError, NotSupportedError):
        if may_trace(pid, _user(peer)):
            raise
        raise InvalidRegionError(
            f"the process {pid} does not map the regions and the dummy_page as the message says, or the"
            f" userfaultfd is not its own; uid {peer.uid} may not trace it, so this says no more"
        ) from None


def add_region(message: AddRegion, frame: Frame, memory: Memory) -> AddRegionRequest:
    if is_private(message.regions) != memory.is_private:
        raise NotSupportedError(
            "regions[0].private: the VM has the other kind: it has private memory or memfds, not both"
        )
    if memory.is_private:
        return _add_private_region(message, frame, memory)
    sent = tuple(frame.fds)
    uffd, memfds = (sent[0], sent[1:]) if message.has_uffd else (None, sent)
    sent_files = _check_memfds(message.regions, memfds)
    new = {file: memfd for file, memfd in zip(sent_files, memfds, strict=True) if file not in memory.files}
    files = memory.files + tuple(new)
    regions = tuple(
        replace(region, memfd=files.index(sent_files[region.memfd])) for region in message.regions
    )
    together = memory.with_regions(regions, tuple(new))
    _check_with_registered(regions, memory, together)
    process_maps = maps.read_maps(memory.pid)
    info = None if uffd is None else fds.check_uffd(uffd)
    with _unseen(frame.peer, memory.pid):
        for idx, region in enumerate(regions):
            maps.check_mapped(process_maps, f"regions[{idx}]", region, together.file_of(region))
        check_not_locked(memory.pid, _spans(regions))
        _check_alive(frame.peer.pidfd, memory.pid)
        if uffd is not None:
            prove(uffd, memory.pid, None, message.regions, _path_among(memfds))
    unlisted = maps.find_unlisted(process_maps, together.regions, together.region_files, together.regions)
    return AddRegionRequest(
        _all_fds(frame), frame.peer, regions, tuple(new.values()), tuple(new), uffd, info, unlisted
    )


def _add_private_region(message: AddRegion, frame: Frame, memory: Memory) -> AddRegionRequest:
    if message.has_uffd:
        raise NotSupportedError(
            "fds: none: the userfaultfd and the mailbox that were registered serve it, too"
        )
    _check_with_registered(message.regions, memory, memory.with_regions(message.regions, ()))
    with _unseen(frame.peer, memory.pid):
        private.check_memory(memory.pid, message.regions)
        _check_alive(frame.peer.pidfd, memory.pid)
    return AddRegionRequest(_all_fds(frame), frame.peer, message.regions, (), (), None, None, ())


def remove_region(message: RemoveRegion, frame: Frame, memory: Memory) -> RemoveRegionRequest:
    for idx, region in enumerate(message.regions):
        if region not in memory.regions:
            raise InvalidRegionError(
                f"regions[{idx}]: {region.addr:#x}, {region.size_bytes} bytes of memfd {region.memfd} at"
                f" {region.offset_bytes}: no such region is registered: give it whole, as it was registered"
            )
    if len(message.regions) == len(memory.regions):
        raise InvalidRegionError("regions: these are all that the VM has: close the connection to release it")
    return RemoveRegionRequest(frame.peer, message.regions)


def attach(message: Attach, frame: Frame) -> AttachRequest:
    if frame.peer.uid != 0:
        raise AccessDeniedError(f"attach: uid {frame.peer.uid} may not: only uid 0 may")
    pidfd = frame.fds[0]
    pid = fds.pid_of(pidfd, "fds[0]")
    if pid == os.getpid():
        raise ProtocolError("fds[0]: the pidfd is of the monitor itself")
    return AttachRequest(
        _all_fds(frame),
        frame.peer,
        pid,
        pidfd,
        message.pins,
        message.qmp,
        message.force,
        message.regions,
        message.uid,
        message.gid,
        message.caller_pid,
    )


def firecracker(message: FirecrackerRegister, frame: Frame) -> FirecrackerRequest:
    uffd = frame.fds[0]
    info = fds.check_uffd_of_snapshot(uffd)
    process_maps = maps.read_maps(frame.peer.pid)
    with _unseen(frame.peer, frame.peer.pid):
        for idx, region in enumerate(message.regions):
            maps.check_private(
                process_maps,
                f"regions[{idx}]",
                region,
                advice="use vmmswap's own message, which can swap shared memory out, too",
            )
    _check_alive(frame.peer.pidfd, frame.peer.pid)
    return FirecrackerRequest(_all_fds(frame), frame.peer, uffd, info, message.regions)


def _all_fds(frame: Frame) -> OwnedFds:
    """All fds of the frame, which owns none from here on."""
    return OwnedFds((*frame.fds.release(), *frame.pidfd.release()))


def _check_alive(pidfd: int, pid: int) -> None:
    """The look that makes what was read by pid true: while a process lives its pid is its own."""
    if not is_alive(pidfd):
        raise ProtocolError(f"the process {pid} has ended")


def _path_among(memfds: Sequence[int]) -> PathOf:
    return lambda region: f"/proc/self/fd/{memfds[region.memfd]}"


def _check_memfds(regions: Sequence[Region], memfds: Sequence[int]) -> tuple[FileId, ...]:
    for idx, region in enumerate(regions):
        fds.check_memfd(memfds[region.memfd], f"regions[{idx}].memfd", region.end_offset)
    return tuple(file_id(memfd) for memfd in memfds)


def _check_registered(field: str, region: Region, memory: Memory) -> None:
    if region.memfd >= len(memory.files):
        raise ProtocolError(
            f"{field}.memfd: {region.memfd}: the VM has registered {len(memory.files)} memfds"
        )
    file = memory.file_of(region)
    if not any(
        memory.file_of(known) == file
        and known.offset_bytes <= region.offset_bytes
        and region.end_offset <= known.end_offset
        for known in memory.regions
    ):
        raise InvalidRegionError(
            f"{field}.offset: {region.offset_bytes} to {region.end_offset} of memfd {region.memfd} is not in"
            " one registered region"
        )


def _check_with_registered(regions: Sequence[Region], memory: Memory, together: Memory) -> None:
    """New regions against those of the VM: in number and size, and none may share addresses or bytes."""
    if len(together.regions) > MAX_REGIONS:
        raise InvalidRegionError(
            f"regions: {len(together.regions)} with those already registered: at most {MAX_REGIONS}"
        )
    total = sum(region.size_bytes for region in together.regions)
    if total > MAX_TOTAL_BYTES:
        raise InvalidRegionError(f"regions: {total} bytes with those registered: at most {MAX_TOTAL_BYTES}")
    for idx, region in enumerate(regions):
        for known in memory.regions:
            if region.addr < known.end and known.addr < region.end:
                raise InvalidRegionError(
                    f"regions[{idx}].base_host_virt_addr: {region.addr:#x} overlaps a registered region"
                )
            if memory.is_private:
                continue
            same_file = together.file_of(region) == memory.file_of(known)
            if (
                same_file
                and region.offset_bytes < known.end_offset
                and known.offset_bytes < region.end_offset
            ):
                raise InvalidRegionError(
                    f"regions[{idx}].offset: {region.offset_bytes} overlaps a registered region of that memfd"
                )
    if not memory.is_private:
        check_no_overlap(regions, [together.file_of(region) for region in regions])


def _spans(regions: Sequence[Region]) -> list[tuple[int, int]]:
    return [(region.addr, region.end) for region in regions]


def _check_process(
    process: _Process, message: Register | AddProcess, memory: Memory, path_of: PathOf | None
) -> ProcessMemory:
    """One process with its uffd, against its maps and the VM's memory. path_of None: it needs no test."""
    pid, regions, dummy_page = process.pid, message.regions, message.dummy_page
    info = fds.check_uffd(process.uffd)
    process_maps = maps.read_maps(pid)
    for idx, region in enumerate(regions):
        maps.check_mapped(process_maps, f"regions[{idx}]", region, memory.file_of(region))
    check_not_locked(pid, _spans(regions))
    if dummy_page is not None and not maps.is_mapped(process_maps, dummy_page):
        raise InvalidRegionError(f"dummy_page: {dummy_page:#x} is not mapped in the process")
    _check_alive(process.pidfd, pid)
    is_proven = path_of is None or prove(process.uffd, pid, dummy_page, regions, path_of)
    listed = (*regions, *memory.regions) if pid == memory.pid else regions
    unlisted = maps.find_unlisted(process_maps, memory.regions, memory.region_files, listed)
    return ProcessMemory(pid, process.pidfd, process.uffd, info, regions, dummy_page, is_proven, unlisted)
