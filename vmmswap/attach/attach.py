# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach to a running VMM and to every process that maps its guest's memory: what a hand-off would have
brought.

All of it blocks, for milliseconds as a rule: call it on a thread. What is refused is refused before anything
is changed where that can be known before, and undone where it cannot.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from vmmswap.attach import memory, private_memory
from vmmswap.attach import target as target_module
from vmmswap.attach.back_ends import CommandLine, check_back_ends, read_command_line
from vmmswap.attach.devices import check_devices
from vmmswap.attach.memory import Candidate, Found, KnownParts
from vmmswap.attach.options import Options
from vmmswap.attach.other_mappers import one_of_each, other_mappers
from vmmswap.attach.planting import PlantedMover, check_machine
from vmmswap.attach.target import Target, open_target
from vmmswap.errors import (
    AccessDeniedError,
    BusyError,
    NotSupportedError,
    VmmswapError,
)
from vmmswap.failpoint import reach
from vmmswap.handoff import fds
from vmmswap.handoff.fds import UffdInfo
from vmmswap.handoff.locked import locked_error
from vmmswap.handoff.maps import flags_of_mappings
from vmmswap.handoff.region import Region, is_private
from vmmswap.linux.access import User, check_process
from vmmswap.linux.maps import LOCKED, MAY_WRITE
from vmmswap.linux.owned import OwnedFds
from vmmswap.linux.process import is_alive
from vmmswap.linux.userfaultfd import Feature
from vmmswap.reasons import reason_of

_log = logging.getLogger("vmmswap.attach")

_REGISTERED = frozenset(
    (b"um", b"uw", b"ui")
)  # flags of a mapping: for missing pages, write-protection, minor faults
_MAX_ROUNDS = 5  # of looking whether somebody has mapped the memory meanwhile


@dataclass(frozen=True, slots=True)
class AttachedProcess:
    """A process with a userfaultfd of ours. Its fds are its AttachedVm's. Region.memfd counts the VM's
    memfds. mover: of a VMM whose memory is private.
    """

    pid: int
    pidfd: int
    uffd: int  # initialised, O_NONBLOCK; nothing is registered with it
    uffd_info: UffdInfo
    regions: tuple[Region, ...]
    dummy_page: int
    name: str
    how: str  # the userfaultfd was made; for people
    mover: PlantedMover | None = None

    @property
    def mailbox(self) -> int | None:
        return None if self.mover is None else self.mover.mailbox

    @property
    def limits(self) -> tuple[str, ...]:
        """What is not offered to this process, and why; for people."""
        return self.uffd_info.limits


@dataclass(frozen=True, slots=True)
class AttachedVm:
    """What attach_vm brings. fds owns all fds: close it, or release() them."""

    fds: OwnedFds
    uid: int  # of the VMM
    memfds: tuple[int, ...]
    processes: tuple[AttachedProcess, ...]  # the VMM first
    candidates: tuple[Candidate, ...]
    options: Options

    @property
    def vmm(self) -> AttachedProcess:
        return self.processes[0]

    @property
    def explanation(self) -> str:
        """What was found and done, in lines for people."""
        lines = [str(candidate) for candidate in self.candidates]
        lines += [
            f"process {process.pid} ({process.name}): userfaultfd made {process.how}"
            for process in self.processes
        ]
        return "\n".join(lines)


@dataclass(slots=True)
class _Work:
    """An attach under way."""

    options: Options
    owned: OwnedFds = field(default_factory=OwnedFds)
    processes: list[AttachedProcess] = field(default_factory=list)

    def undo(self) -> None:
        """Leave all processes as they were."""
        for process in self.processes:
            _undo_one(process, self.options.force)
        self.processes.clear()
        self.owned.close()


def _undo_one(process: AttachedProcess, force: bool) -> None:
    from vmmswap.attach import plant  # noqa: PLC0415  a monitor of VMs that hand over never needs it

    try:
        target = target_module.look_at(process.pidfd)
        plant.uproot(target, [process.uffd], [process.dummy_page], mailbox=process.mailbox, force=force)
    except Exception as error:  # whatever it is: the others must be left too
        _log.warning("process %d keeps an idle userfaultfd: %s", process.pid, error)


def has_private_memory(pidfd: int, user: User) -> bool:
    """True if a process that may be attached to has private memory that may be a guest's. VmmswapError as of
    attach_vm().
    """
    return any(not seen.refusal for seen in private_memory.find(_look(pidfd, user), memory.MIN_BYTES))


def attach_vm(pidfd: int, options: Options | None = None) -> AttachedVm:
    """Attach. VmmswapError with the reason if it cannot be; no process has changed then. pidfd stays the
    caller's.
    """
    options = options or Options()
    vmm = _look(pidfd, options.user)
    try:
        return _attach_vm(vmm, options)
    except VmmswapError:
        if target_module.is_ending(pidfd):
            raise NotSupportedError(f"{vmm} has ended") from None
        raise


def _attach_vm(vmm: Target, options: Options) -> AttachedVm:
    if not options.force:
        check_back_ends(vmm, vmm.pid)
    work = _Work(options)
    try:
        found = memory.find(vmm, options.regions, options.blocks)
        memfds = tuple(found.memfds)
        for fd in found.memfds.release():
            work.owned.add(fd)
        is_ours = _lock(work, memfds)
        if found.is_private:
            _make_room_for_mover(vmm, options)
        _check(vmm, found.regions)
        if not is_ours:
            raise BusyError(f"another monitor is attaching to {vmm} right now: try again later")
        if found.is_private:
            _attach_one(work, vmm, found.regions)
        else:
            _attach_all(work, vmm, memfds, found.regions)
        return AttachedVm(
            OwnedFds(work.owned.release()),
            vmm.uid,
            memfds,
            tuple(work.processes),
            found.candidates,
            options,
        )
    except OSError as error:
        work.undo()
        raise NotSupportedError(f"cannot attach to {vmm}: {reason_of(error)}") from error
    except BaseException:
        work.undo()
        raise


def _attach_all(work: _Work, vmm: Target, memfds: Sequence[int], guest: Sequence[Region]) -> None:
    """The VMM, and all others that map its guest's memory."""
    others = one_of_each(other_mappers(memfds, guest, (vmm.pid,)), (vmm.pid,))
    targets = {pid: _open_and_check(work, pid, regions) for pid, regions in others.items()}
    _attach_one(work, vmm, guest)
    for pid, regions in others.items():
        _attach_one(work, targets[pid], regions)
    _attach_late(work, memfds, guest)


def _make_room_for_mover(vmm: Target, options: Options) -> None:
    from vmmswap.attach.leftovers import remove_leftovers  # noqa: PLC0415  as in _undo_one()

    check_machine()
    remove_leftovers(vmm, force=options.force)


def _lock(work: _Work, memfds: Sequence[int]) -> bool:
    """True if nobody else is about to attach. Held until the AttachedVm's fds are closed: by then the dummy
    page is registered, which all can see.
    """
    for memfd in memfds:
        own = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY | os.O_CLOEXEC)
        work.owned.add(own)
        try:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def attach_process(
    pid: int, memfds: Sequence[int], guest: Sequence[Region], options: Options | None = None
) -> tuple[OwnedFds, AttachedProcess]:
    """Attach to one more process that maps memory of an attached VM. guest: file offsets count, addresses do
    not.

    The fds are the caller's. VmmswapError if it cannot be; NotSupportedError also if it maps none of it.
    """
    options = options or Options()
    work = _Work(options)
    try:
        regions = other_mappers(memfds, guest, (), only=pid).get(pid, ())
        if not regions:
            raise NotSupportedError(f"process {pid} maps none of the guest's memory")
        _attach_one(work, _open_and_check(work, pid, regions), regions)
        return OwnedFds(work.owned.release()), work.processes[0]
    except BaseException as error:
        work.undo()
        if isinstance(error, OSError):
            raise NotSupportedError(f"cannot attach to process {pid}: {reason_of(error)}") from error
        raise


def detach_process(
    pidfd: int,
    uffds: Sequence[int],
    dummy_page: int | None = None,
    *,
    mailbox: int | None = None,
    force: bool = False,
) -> None:
    """Close our userfaultfds in a process and unmap its dummy page; mailbox: end the thread that moves its
    memory. Call it when guest memory is unregistered.

    uffds: the process's own, then all of the VM's, as a forked child holds its parent's. dummy_page None: the
    one that is registered. Nothing happens if the process has ended. If this raises, an idle userfaultfd and
    page stay behind.
    """
    if not is_alive(pidfd):
        return
    from vmmswap.attach import plant  # noqa: PLC0415  a monitor of VMs that hand over never needs it

    try:
        pages = plant.idle(fds.pid_of(pidfd, "pidfd"), uffds[0], dummy_page)
        plant.uproot(target_module.look_at(pidfd), uffds, pages, mailbox=mailbox, force=force)
    except (VmmswapError, OSError):
        if not target_module.is_ending(pidfd):
            raise


def find_further_memory(pidfd: int, known: KnownParts) -> Found:
    """What a process that was attached to maps besides: guest memory that was added since, by the same rules.

    NotSupportedError if it cannot be served. The memfds are the caller's.
    """
    target = target_module.look_again(pidfd)
    found = memory.find_further(target, known)
    try:
        if found.regions:
            _check(target, found.regions, is_new=False)
    except BaseException:
        found.memfds.close()
        raise
    return found


def check_before_enable(pidfd: int, *, force: bool) -> CommandLine:
    """What must be true not only when a process is attached to: NotSupportedError if it is not."""
    target = target_module.look_again(pidfd)
    check_devices(target)
    return read_command_line(target.pid) if force else check_back_ends(target, target.pid)


def check_devices_of(pidfd: int) -> None:
    """The same of any other process that maps the memory; one that has ended has none."""
    if is_alive(pidfd):
        check_devices(target_module.look_again(pidfd))


def _look(pidfd: int, user: User) -> Target:
    target = target_module.look_at(pidfd, user)
    check_process(target.pid, user)
    check_devices(target)
    return target


def _check(target: Target, regions: Sequence[Region], *, is_new: bool = True) -> None:
    """What can only be said of a process that has guest memory. is_new False: what is registered elsewhere is
    ours.
    """
    for mapping, flags in flags_of_mappings(target.pid):
        start = mapping.start
        is_guest = any(mapping.overlaps(item.addr, item.end) for item in regions)
        if flags & _REGISTERED and (is_new or is_guest):
            raise NotSupportedError(
                f"{target} has {'guest ' if is_guest else ''}memory registered with a userfaultfd already, at"
                f" {start:#x}: another monitor, or the VMM itself (post-copy migration, a snapshot being"
                " restored), serves it"
            )
        if is_guest and LOCKED in flags:
            raise locked_error(target.pid, start)
        if is_guest and MAY_WRITE not in flags:
            raise NotSupportedError(
                f"{target} maps guest memory at {start:#x} from a file that it opened for reading only: no"
                " userfaultfd can serve it there, and it would read zeros"
            )


def _open_and_check(work: _Work, pid: int, regions: Sequence[Region]) -> Target:
    pidfd = open_target(pid)
    work.owned.add(pidfd)
    try:
        target = _look(pidfd, replace(work.options.user, pid=0))
        _check(target, regions)
    except (AccessDeniedError, NotSupportedError, BusyError) as error:
        raise type(error)(
            f"process {pid} maps guest memory too, and cannot be attached to: {error}"
        ) from None
    return target


def _attach_late(work: _Work, memfds: Sequence[int], guest: Sequence[Region]) -> None:
    """Until no process maps the memory without a userfaultfd: it may have been given on while we looked."""
    for _ in range(_MAX_ROUNDS):
        known = [process.pid for process in work.processes]
        late = one_of_each(other_mappers(memfds, guest, known, quiet=True), known)
        if not late:
            return
        for pid, regions in late.items():
            _attach_one(work, _open_and_check(work, pid, regions), regions)
    raise BusyError(
        f"processes {', '.join(map(str, late))} map guest memory, and more keep coming: try again"
    )


def _attach_one(work: _Work, target: Target, regions: Sequence[Region]) -> None:
    """A process of its own, with its own uffd. Undoing it is the work's from the moment that it is in its
    list.
    """
    from vmmswap.attach import plant  # noqa: PLC0415  a monitor of VMs that hand over never needs it
    from vmmswap.attach.leftovers import check_alone  # noqa: PLC0415  neither

    spans = [(region.addr, region.size_bytes) for region in regions] if is_private(regions) else []
    planted = plant.plant(target, spans, force=work.options.force)
    work.owned.add(planted.uffd)
    mover = planted.mover
    with ExitStack() as undo:
        undo.callback(
            plant.uproot,
            *(target, [planted.uffd], [planted.dummy_page]),
            mailbox=None if mover is None else mover.mailbox,
            force=work.options.force,
        )
        if mover is not None:
            for fd in (mover.mailbox, mover.pagemap, mover.lock):
                work.owned.add(fd)
            check_alone(target, mover.mailbox)
        own_pidfd = os.dup(target.pidfd)
        work.owned.add(own_pidfd)
        more = Feature(0) if mover is None else Feature.EVENT_UNMAP
        info = fds.check_uffd(planted.uffd, str(target), more)
        reach("initialised")
        undo.pop_all()
    work.processes.append(
        AttachedProcess(
            target.pid,
            own_pidfd,
            planted.uffd,
            info,
            tuple(regions),
            planted.dummy_page,
            target.name,
            planted.how,
            mover,
        )
    )
