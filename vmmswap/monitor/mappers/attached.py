# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM that was attached to: it tells us nothing, so we look after what a hand-off would tell.

Who begins to map its memory is attached too: before each Enable, when it changes nothing for anybody, and
while memory is out, when it may be too late: a process that reads a hole before it has a userfaultfd reads
zeros, and those zeros are then true for all. That cannot be prevented from outside. It is watched for,
reported as what it is, and whoever cannot be attached to has all memory brought back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from vmmswap import message_ids
from vmmswap.attach.attach import (
    AttachedProcess,
    AttachedVm,
    attach_process,
    attach_vm,
    check_before_enable,
    check_devices_of,
    detach_process,
    has_private_memory,
)
from vmmswap.attach.frozen import check_not_frozen
from vmmswap.attach.huge_pages import forbid_huge_pages
from vmmswap.attach.options import Options
from vmmswap.engine import Mover
from vmmswap.errors import NoSuchVMError, NotSupportedError, VmmswapError
from vmmswap.handoff.fds import pid_of
from vmmswap.handoff.region import PAGE_SIZE, Region
from vmmswap.linux.access import User
from vmmswap.linux.owned import OwnedFds
from vmmswap.linux.process import is_alive
from vmmswap.linux.userfaultfd import is_gone
from vmmswap.log import fields
from vmmswap.monitor.looks import SeenTwice, pause_s
from vmmswap.monitor.mappers import collapse, coverage
from vmmswap.monitor.mappers.added_back_ends import check_added_back_ends
from vmmswap.monitor.mappers.hotplug import Hotplug
from vmmswap.monitor.mappers.lookout import Unserved, Watcher
from vmmswap.monitor.mappers.processes import Processes
from vmmswap.monitor.mappers.qemu_memory import ask_ram_blocks
from vmmswap.monitor.new_vm import NewProcess, NewVm
from vmmswap.monitor.process import Process
from vmmswap.monitor.spoiled import How, SpoiledError, Spoiler
from vmmswap.monitor.vm import Vm
from vmmswap.reasons import reason_of

_log = logging.getLogger("vmmswap.attached")

_WATCH_S = 1.0
_LET_GO_EVERY = 5  # looks
_FLAGS_REST = 20  # times as long as it took


async def asked(pidfd: int, qmp_path: str, options: Options) -> Options:
    """With what QEMU says of its memory, if it is private and not chosen by hand. VmmswapError as of
    attach().
    """
    if options.regions or not await asyncio.to_thread(has_private_memory, pidfd, options.user):
        return options
    blocks = await ask_ram_blocks(qmp_path, pid_of(pidfd, "the VMM"))
    if blocks is not None and not blocks.has_addresses:
        _log.info(
            "QEMU says how large its RAM is, and not where (before 8.0): it is chosen by size and shape"
        )
    return replace(options, blocks=blocks)


async def attach(pidfd: int, options: Options) -> AttachedVm:
    """Attach on a thread. Wait for it even if cancelled, because its work must be undone."""
    task = asyncio.ensure_future(asyncio.to_thread(attach_vm, pidfd, options))
    try:
        attached = await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(VmmswapError):
            await undo(await task)
        raise
    for line in attached.explanation.splitlines():
        _log.info("%s", line)
    return attached


async def _attach_one(
    pid: int, memfds: Sequence[int], guest: Sequence[Region], options: Options
) -> tuple[OwnedFds, AttachedProcess]:
    """Like attach_process(), on a thread."""
    task = asyncio.ensure_future(asyncio.to_thread(attach_process, pid, memfds, guest, options))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(VmmswapError):
            owned, process = await task
            with owned:
                await _detach(process, [process.uffd], process.dummy_page, force=options.force)
        raise


async def undo(attached: AttachedVm) -> None:
    """Restore the processes, and close all fds."""
    with attached.fds:
        uffds = [process.uffd for process in attached.processes]
        for process in attached.processes:
            await _detach(
                process,
                [process.uffd, *uffds],
                process.dummy_page,
                mailbox=process.mailbox,
                force=attached.options.force,
            )


async def detach(vm: Vm) -> list[str]:
    """Remove from a VM's processes what was put into them, once all of its memory is in and unregistered.
    Returns those that keep it, for people.
    """
    known, force = list(vm.processes.values()), vm.manifest.forced
    uffds = [item.uffd for item in known]
    left = []
    for process in known:
        if process.pidfd >= 0 and not await asyncio.to_thread(is_gone, process.uffd):
            name = coverage.name_of(process.pid)
            mailbox = vm.mailbox if process is vm.vmm else None
            own = [process.uffd, *uffds]
            if not await _detach(process, own, mailbox=mailbox, force=force):
                left.append(name)
    return left


async def _detach(
    who: AttachedProcess | Process,
    uffds: list[int],
    dummy_page: int | None = None,
    *,
    mailbox: int | None = None,
    force: bool = False,
) -> bool:
    """uffds: the process's own first. False if they stay there; the log says so."""
    try:
        await asyncio.to_thread(detach_process, who.pidfd, uffds, dummy_page, mailbox=mailbox, force=force)
    except Exception as error:  # whatever failed: the VM must be released
        _log.warning("process %s keeps an idle userfaultfd: %s", coverage.name_of(who.pid), error)
        return False
    return True


def new_vm(attached: AttachedVm, *, pins: bool, qmp: str | None) -> NewVm:
    """Make a VM to register as if it had been handed over; the other processes are added then."""
    return NewVm(
        new_process(attached.vmm),
        attached.memfds,
        attached.uid,
        pins,
        qmp,
        attached=True,
        forced=attached.options.force,
        chosen=bool(attached.options.regions),
        ordered_by=attached.options.user,
        mover=_mover(attached.vmm),
    )


def _mover(vmm: AttachedProcess) -> Mover | None:
    return None if vmm.mover is None else Mover(vmm.pid, vmm.mover.mailbox, vmm.mover.pagemap)


def new_process(process: AttachedProcess) -> NewProcess:
    return NewProcess(
        process.pid, process.pidfd, process.uffd, process.regions, process.dummy_page, process.limits
    )


class Watch(Watcher):
    """Watches an attached VM: late mappers of its memory, and what it maps later."""

    def __init__(
        self,
        vm: Vm,
        processes: Processes,
        barrier: Callable[[], Awaitable[None]],
        on_unserved: Callable[[VmmswapError], None],
    ) -> None:
        super().__init__(processes)
        self._vm = vm
        self._barrier = barrier
        self._hotplug = Hotplug(vm, processes.liveness, self._say_late)
        self._on_unserved = on_unserved
        self._unserved = Unserved(on_unserved)
        self._late: set[int] = set()  # pids that were reported
        self._refusals: dict[int, SpoiledError] = {}  # by pid: failures to attach at this look
        self._refused = SeenTwice[SpoiledError]()
        self._is_closed = False
        self._lock = asyncio.Lock()
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="late mappers")

    def close(self) -> None:
        self._is_closed = True
        self._hotplug.close()
        self._task.cancel()

    async def stop(self) -> None:
        """Attach to no more processes. Returns when no attach is under way."""
        self.close()
        async with self._lock:
            pass

    async def check_before_enable(self) -> None:
        """Follow what the VMM maps now, and attach to new mappers. Then continue as for any VM."""
        try:
            await self._check_back_ends()
            async with self._lock:
                await self._hotplug.follow()
                await self._attach_strangers(await self._hotplug.look(), self._adopt_if_there)
                await self._forbid_huge_pages(await self._hotplug.look())
                await self._barrier()
            await self._processes.check_covered()
        except VmmswapError:
            if self._is_closed:
                raise NoSuchVMError("the VM has ended") from None
            raise

    def check_before_exit(self) -> None:
        """BusyError if a process is frozen: what was put into it could not be removed."""
        for process in self._vm.processes.values():
            if process.pid and process.pidfd >= 0 and is_alive(process.pidfd):
                check_not_frozen(process.pid, f"process {coverage.name_of(process.pid)}")

    async def _forbid_huge_pages(self, picture: coverage.Picture) -> None:
        """Forbid huge pages to these if the kernel would fill what is out with zeros for them.
        NotSupportedError if that fails.
        """
        pidfds = {item.pid: item.pidfd for item in self._vm.processes.values() if item.pidfd >= 0}
        own = [one for one in picture.mapped if one.pid in pidfds]
        for mapped in collapse.by_process(coverage.spans_of(own)):
            await asyncio.to_thread(self._forbid_to, pidfds[mapped.pid], mapped)

    def _forbid_to(self, pidfd: int, mapped: collapse.Mapped) -> None:
        if not collapse.kernel_fills_holes() or not (spans := collapse.exposed_spans(mapped)):
            return
        try:
            forbid_huge_pages(pidfd, spans, force=self._vm.manifest.forced)
        except VmmswapError as error:
            if is_alive(pidfd) and not collapse.is_denied():
                raise collapse.exposed_error(mapped.pid, spans[0][0], error.message) from None

    async def _check_back_ends(self) -> None:
        """Check back-ends and devices: both may have been added since."""
        manifest, vmm = self._vm.manifest, self._vm.vmm
        given = await asyncio.to_thread(check_before_enable, vmm.pidfd, force=manifest.forced)
        for process in list(self._vm.processes.values()):
            if process is not vmm and process.pidfd >= 0:
                await self._check_devices(process)
        if manifest.qmp and not manifest.forced:
            target = f"process {coverage.name_of(vmm.pid)}"
            await check_added_back_ends(manifest.qmp, vmm.pid, target, given)

    async def _check_devices(self, process: Process) -> None:
        try:
            await asyncio.to_thread(check_devices_of, process.pidfd)
        except (VmmswapError, OSError):
            if self._vm.processes.get(process.process_id) is process and is_alive(process.pidfd):
                raise

    async def _watch(self) -> None:
        next_flags_s = 0.0  # when to look at the mappings' flags, which costs more for a larger VM
        loop = asyncio.get_running_loop()
        bugs: set[str] = set()
        is_tracking = True
        for look in itertools.count():  # at once: a predecessor may be dead for a while
            since_s = loop.time()
            try:
                async with self._lock:
                    since_s = loop.time()
                    is_tracking = self._vm.engine.stats().tracking
                    may_let_go = not is_tracking or look % _LET_GO_EVERY == 0
                    next_flags_s = await self._look(next_flags_s, may_let_go=may_let_go)
            except NoSuchVMError:
                return
            except (VmmswapError, OSError) as error:
                self._hotplug.tell(f"cannot look at who maps guest memory: {reason_of(error)}")
            except Exception as bug:  # memory is out, so keep looking
                if repr(bug) not in bugs:
                    bugs.add(repr(bug))
                    _log.exception("bug in the watch for who maps guest memory; the watch continues")
            if is_tracking:
                await asyncio.sleep(pause_s(loop.time() - since_s))
            else:
                await self._vm.pulse.rest(loop.time() - since_s)

    async def _look(self, next_flags_s: float, *, may_let_go: bool) -> float:
        """Returns when to look at the flags of mappings next."""
        loop = asyncio.get_running_loop()
        before = self._vm.manifest
        is_tracking = self._vm.engine.stats().tracking
        picture = await self._hotplug.look_again()
        if is_tracking:
            self._unserved.look_at_private(picture.private)
        self._late &= {one.pid for one in picture.mapped}
        try:
            if is_tracking:
                await self._hotplug.follow_known(picture)
        except NotSupportedError as error:
            self._hotplug.tell(error.message)
        if may_let_go:
            await self._hotplug.let_go(picture)
        if is_tracking:
            self._refusals = {}
            await self._attach_strangers(picture, self._try_to_adopt)
            if (refusal := self._refused.look_at(self._refusals)) is not None:
                self._on_unserved(refusal)
            if loop.time() >= next_flags_s:
                since_s = loop.time()
                await self._hotplug.register_anew()
                await self._forbid_huge_pages(picture)
                next_flags_s = loop.time() + _FLAGS_REST * (loop.time() - since_s)
        if self._vm.manifest is not before:
            await self._barrier()
        return next_flags_s

    async def _attach_strangers(
        self, picture: coverage.Picture, adopt: Callable[[int, coverage.Picture], Awaitable[None]]
    ) -> None:
        # A look sees a forked child before the kernel's event of it has come: only a stranger seen twice is
        # one.
        if not (first := self._strangers(picture)):
            return
        await asyncio.sleep(_WATCH_S / 10)
        for pid in sorted(first & self._strangers(await self._hotplug.look())):
            picture = await self._hotplug.look()
            if pid in self._strangers(picture):  # else it shares the memory of one that was just attached
                await adopt(pid, picture)

    def _strangers(self, picture: coverage.Picture) -> set[int]:
        known = {process.pid for process in self._vm.processes.values()}
        return {one.pid for one in picture.strangers} - known

    async def _adopt(self, pid: int, picture: coverage.Picture) -> None:
        own = [one for one in picture.strangers if one.pid == pid]
        if await self._vm.any_out(one.range for one in own):
            self._say_late(pid)
        vm = self._vm
        numbers = sorted(vm.memfds)
        guest = [
            Region(item.addr, item.pages * PAGE_SIZE, item.offset_bytes, numbers.index(item.memfd))
            for item in vm.manifest.regions
        ]
        user = User(vm.manifest.ordered_by, vm.manifest.ordered_by_gid)
        options = Options(force=vm.manifest.forced, user=user)
        memfds = [vm.memfds[number] for number in numbers]
        owned, process = await _attach_one(pid, memfds, guest, options)
        with owned:
            try:
                if self._is_closed:
                    raise NoSuchVMError("the VM has ended")
                await self._processes.add(_numbered(new_process(process), numbers))
            except BaseException:
                await _detach(process, [process.uffd], process.dummy_page, force=options.force)
                raise
        await self._forbid_huge_pages(picture)

    async def _adopt_if_there(self, pid: int, picture: coverage.Picture) -> None:
        """Ignore a process that ends meanwhile."""
        try:
            await self._adopt(pid, picture)
        except NoSuchVMError:
            raise
        except VmmswapError:
            if pid in self._strangers(await self._hotplug.look()):
                raise

    async def _try_to_adopt(self, pid: int, picture: coverage.Picture) -> None:
        """Try at each look until it works; report a failure once."""
        is_news = pid not in self._late
        try:
            await self._adopt(pid, picture)
        except NoSuchVMError:
            raise
        except (VmmswapError, OSError) as error:
            what = f"process {coverage.name_of(pid)} cannot be attached to: {reason_of(error)}"
            self._refusals[pid] = SpoiledError(
                Spoiler(pid, How.CANNOT_BE_ATTACHED_TO),
                f"{what}. It maps guest memory, and reads zeros where that is out: end it",
            )
            _log.log(logging.ERROR if is_news else logging.DEBUG, "%s", what)

    def _say_late(self, pid: int) -> None:
        if pid in self._late:
            return
        self._late.add(pid)
        _log.error(
            "process %s has mapped guest memory while it is swapped out. Pages that it read before now are"
            " zeros, to it and from then on to the guest. Such a process must map the memory before it is"
            " swapped out, or not at all",
            coverage.name_of(pid),
            extra=fields("", message_ids.LATE_MAPPER, vmmswap_pid=pid),
        )


def _numbered(new: NewProcess, numbers: Sequence[int]) -> NewProcess:
    """Number its memfds as the VM does: attach counts the fds that it was given."""
    return replace(new, regions=tuple(replace(item, memfd=numbers[item.memfd]) for item in new.regions))
