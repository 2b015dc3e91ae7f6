# SPDX-License-Identifier: GPL-2.0-or-later
"""What the hand-off delivers to the monitor: checked requests with owned fds, and who takes them.

Each request's `fds` owns all fd numbers in it, the sender's pidfd included. They are closed when the
handler's method returns or raises, unless it called `request.fds.release()`: from then on all of them are
the handler's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from vmmswap.engine import Mover
from vmmswap.errors import VmmswapError
from vmmswap.handoff.fds import UffdInfo
from vmmswap.handoff.peer import Peer
from vmmswap.handoff.receiver import Frame
from vmmswap.handoff.region import Region, is_private
from vmmswap.linux.files import FileId
from vmmswap.linux.maps import Mapping
from vmmswap.linux.owned import OwnedFds


@dataclass(frozen=True, slots=True)
class Memory:
    """What a VM has registered. Region.memfd indexes `files`, unless the memory is private."""

    pid: int  # the process that registered: the only one that may say more
    regions: tuple[Region, ...]  # addresses are that process's
    files: tuple[FileId, ...]  # one for each memfd, in order of registration

    def file_of(self, region: Region) -> FileId:
        return self.files[region.memfd]

    @property
    def region_files(self) -> tuple[FileId, ...]:
        """Each region's file; none of private memory."""
        return () if self.is_private else tuple(map(self.file_of, self.regions))

    @property
    def is_private(self) -> bool:
        return is_private(self.regions)

    def with_regions(self, regions: tuple[Region, ...], files: tuple[FileId, ...]) -> Memory:
        return replace(self, regions=self.regions + regions, files=self.files + files)

    def without(self, regions: tuple[Region, ...]) -> Memory:
        return replace(self, regions=tuple(region for region in self.regions if region not in regions))


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """One userfaultfd with the process and the regions that it is for."""

    pid: int
    pidfd: int
    uffd: int  # initialised, O_NONBLOCK; nothing is registered with it
    uffd_info: UffdInfo
    regions: tuple[Region, ...]
    dummy_page: int | None
    # True: seen to stop kernel-mode accesses, and to be this process's. False: no empty page was there to
    # try. Then call probe.probe() on the first page that is punched, or do not offer Enable to VMs with KVM.
    is_proven: bool
    unlisted: tuple[
        Mapping, ...
    ]  # the process maps guest memory here too, without a uffd: Enable must be refused

    @property
    def _advice(self) -> str:
        if self.dummy_page is None:
            return "send a dummy_page"
        return (
            f"the dummy_page {self.dummy_page:#x} was touched before, or filled by mlockall(MCL_FUTURE): send"
            " one that is empty"
        )

    @property
    def limits(self) -> tuple[str, ...]:
        """What is not offered to this process, and why; for people."""
        unproven = () if self.is_proven else (f"no empty page to test the userfaultfd with: {self._advice}",)
        aliases = tuple(
            f"guest memory is mapped without a userfaultfd at {mapping}" for mapping in self.unlisted
        )
        return self.uffd_info.limits + unproven + aliases


@dataclass(frozen=True, slots=True)
class RegisterRequest:
    fds: OwnedFds
    peer: Peer
    process: ProcessMemory  # the sender
    memfds: tuple[int, ...]
    memory: Memory
    pins: bool  # False: the VMM promises that nothing pins guest memory beyond a system call
    qmp: str | None  # absolute path; check who owns that socket before trusting it
    connection: int  # the socket's fd, for the fd store; stays the session's
    mover: Mover | None = None  # of private memory; there are no memfds then


@dataclass(frozen=True, slots=True)
class AddProcessRequest:
    """Each region lies in one registered region; Region.memfd counts the VM's memfds."""

    fds: OwnedFds
    peer: Peer
    process: ProcessMemory


@dataclass(frozen=True, slots=True)
class AddRegionRequest:
    """More memory of the process that registered; Region.memfd counts the VM's memfds, the new ones last."""

    fds: OwnedFds
    peer: Peer
    regions: tuple[Region, ...]
    memfds: tuple[int, ...]  # only those of files that the VM had not registered before
    files: tuple[FileId, ...]  # of memfds
    uffd: int | None  # None: the one that was registered serves these regions too
    uffd_info: UffdInfo | None
    unlisted: tuple[Mapping, ...]


@dataclass(frozen=True, slots=True)
class RemoveRegionRequest:
    """Whole regions, as they were registered."""

    peer: Peer
    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """From uid 0 only. Whoever closes the connection before the reply has given the order up; afterwards its
    end means nothing.
    """

    fds: OwnedFds
    peer: Peer
    pid: int
    pidfd: int
    pins: bool
    qmp: str | None
    force: bool
    regions: tuple[str, ...] = ()  # START-END in hexadecimal; none: all that looks like guest memory
    uid: int = 0  # who wants it: but for root, only what that user may trace is attached to
    gid: int = 0
    caller_pid: int = 0  # 0: does not matter
    is_given_up: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class FirecrackerRequest:
    """Firecracker fills its memory from a snapshot: Region.offset_bytes is in the snapshot's memory file.

    Whether the uffd stops kernel-mode accesses is not tested: its memory may be registered and waiting
    already. The end of its connection means nothing: Firecracker never uses it again, and older versions
    close it at once.
    """

    fds: OwnedFds
    peer: Peer
    uffd: int
    uffd_info: UffdInfo
    regions: tuple[Region, ...]


class HandoffHandler(Protocol):
    """The monitor, as a session sees it. Methods raise VmmswapError to refuse; the peer gets it as the
    reply.
    """

    @property
    def name(self) -> str:
        """The VM's name, for `ready`."""

    def occupant(self) -> str:
        """The process of the VM that is registered, for people; "" if there is none."""

    def check_peer(self, peer: Peer) -> None:
        """AccessDeniedError unless this process may hand a VM over here. Asked before anything that it sent
        is looked at.
        """

    async def register(self, request: RegisterRequest) -> None:
        """Return once everything is in the fd store and the dummy page is registered: `ready` is sent
        then.
        """

    def keeping(self, frame: Frame) -> AbstractAsyncContextManager[None]:
        """While Firecracker's message is looked at and its VM registers. It is sent only once: should the
        monitor die meanwhile, the next one must have it.
        """

    async def register_firecracker(self, request: FirecrackerRequest) -> None:
        """NotSupportedError where the monitor was not given the snapshot's memory file."""

    def served_pid(self, uffd: int) -> int | None:
        """The process that this userfaultfd is of, if it is served already: it was tested when it came, and
        cannot be now, because its events are read.
        """

    async def add_process(self, request: AddProcessRequest) -> None: ...

    async def add_region(self, request: AddRegionRequest) -> None: ...

    async def remove_region(self, request: RemoveRegionRequest) -> None: ...

    async def attach(self, request: AttachRequest) -> None: ...

    async def connection_lost(self, error: VmmswapError | None) -> None:
        """The registered VM's connection has ended. Called once, never after attach or Firecracker's message.

        None: the VMM closed it: if its process lives, swap all in and release it. An error: we closed it
        after refusing a message, which has no effect on the VM; it can say no more, its pidfd tells of its
        end.
        """
