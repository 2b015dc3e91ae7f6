# SPDX-License-Identifier: GPL-2.0-or-later
"""Follows a VM's processes: forks, ends, who else maps its memory."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from vmmswap.engine import MapperWatch, ProcessForked, Range
from vmmswap.errors import (
    InvalidRegionError,
    NoSuchVMError,
    NotSupportedError,
    VmmswapError,
)
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.linux.process import is_alive, is_same_file
from vmmswap.monitor.guard import Failures, guarded, log_failure
from vmmswap.monitor.holders import Holders
from vmmswap.monitor.host_looks import HostLooks
from vmmswap.monitor.mappers import collapse, coverage
from vmmswap.monitor.mappers.liveness import Liveness
from vmmswap.monitor.mappers.placement import has_all
from vmmswap.monitor.new_vm import NewProcess
from vmmswap.monitor.process import Process
from vmmswap.monitor.vm import Vm

_log = logging.getLogger("vmmswap.processes")

# A look sees a forked process before the kernel's event of it has come, and a process that is about to exec
# (posix_spawn) never has one: look again for a while before refusing.
_LOOKS = 6
_LOOK_AGAIN_S = 0.03
# Its parent may need long to continue the fork, on a loaded host.
_LOOKS_FOR_PIDS = 40
_SEARCH_PAUSES_S = (*[0.0] * _LOOKS, 0.3, 1.0, 3.0, 10.0)  # in addition
_ALIVE_EVERY_S = 2.0


class Processes:
    """Watches a registered VM. on_vmm_gone is called when the process that registered has ended or called
    exec; on_late(error) when a process opens guest memory while it is out (holders.py).
    """

    def __init__(
        self,
        vm: Vm,
        on_vmm_gone: Callable[[], None],
        on_exposed: Callable[[NotSupportedError], None],
        on_late: Callable[[VmmswapError], None],
    ) -> None:
        self._vm = vm
        self._on_vmm_gone = on_vmm_gone
        self._on_exposed = on_exposed
        self._needs_denial = False  # only shmem_enabled=deny protects what is out
        self._check: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._watched: dict[int, int] = {}  # the engine's number: pidfd
        self._told_unreadable: set[int] = set()
        self._holders = Holders(vm, on_late)
        self.liveness = Liveness(vm.pulse.together)
        self._ends: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._mappers = MapperWatch()  # of the search for pids
        self._search: asyncio.Task[None] | None = None
        self._search_anew = asyncio.Event()  # one more was forked
        for process in vm.processes.values():
            self._watch(process)
        self._alive = self._loop.create_task(self._look_alive(), name="ends of processes")
        if any(not process.pid for process in vm.processes.values()):
            self._start_search()
        if vm.engine.stats().tracking:
            # Only the predecessor knew what protects the memory that is out.
            self._start_check(partial(HostLooks().mapped, max_age_s=vm.pulse.max_age_s))

    def close(self) -> None:
        self._is_closed = True
        self._holders.close()
        for pidfd in self._watched.values():
            self._loop.remove_reader(pidfd)
        self._watched.clear()
        for task in (self._alive, self._search, self._check, *self._ends):
            if task is not None and task is not asyncio.current_task():
                task.cancel()

    async def add(self, new: NewProcess) -> None:
        """Serve one more process, or further memory of a known one, with its userfaultfd or another one."""
        others = (item for item in self._vm.processes.values() if item is not self._vm.vmm)
        await self._forget_gone([item for item in others if item.pid == new.pid])  # that has called exec
        if not self._is_closed:
            await asyncio.to_thread(self._vm.engine.release_rest)
        if self._is_closed:
            raise NoSuchVMError("the VM has ended")
        self._check_not_served(new)
        known = self._with_uffd(new.uffd)
        if known is not None:
            if new.dummy_page and not known.dummy_page:
                self._vm.engine.register_dummy(known.process_id, new.dummy_page)
                known.dummy_page = new.dummy_page
            self._vm.extend_process(known, new.regions)
            _log.info("process %s shares more of the VM's memory", coverage.name_of(known.pid))
            return
        process = self._vm.add_process(new)
        try:
            self._vm.register_dummy(process)
        except BaseException:
            self._vm.remove_process(process.process_id)
            raise
        _log.info("process %s shares the VM's memory", coverage.name_of(process.pid))
        self._watch(process)

    def pid_of(self, uffd: int) -> int | None:
        """Return the process that a userfaultfd belongs to, if it is served."""
        known = self._with_uffd(uffd)
        return None if known is None else known.pid

    def _with_uffd(self, uffd: int) -> Process | None:
        """The engine must have each userfaultfd once: its events go to whoever reads first."""
        own = os.getpid()
        return next(
            (item for item in self._vm.processes.values() if is_same_file(own, item.uffd, uffd)), None
        )

    def _check_not_served(self, new: NewProcess) -> None:
        """The kernel would refuse a second userfaultfd there, but only at a swap-out. And memory that is
        mapped twice would be protected and filled at only one of its addresses.
        """
        wanted = [self._vm.range_of(region) for region in new.regions]
        for process in self._vm.processes.values():
            if process.pid != new.pid:
                continue
            for idx, item in enumerate(wanted):
                _check_apart(f"regions[{idx}]", item, process)

    async def is_vmm_alive(self) -> bool:
        vmm = self._vm.vmm
        return is_alive(vmm.pidfd) and not await self.liveness.gone([vmm])

    def forked(self, event: ProcessForked) -> None:
        """If this raises, the child is served, but would be lost if the monitor died."""
        self._vm.add_child(event.process_id, event.parent_id, event.uffd)
        self._start_search()

    def gone(self, process_id: int) -> None:
        """A process has ended or called exec."""
        process = self._vm.processes.get(process_id)
        if process is None:
            return
        process.has_gone = True
        pidfd = self._watched.pop(process_id, None)
        if pidfd is not None:
            self._loop.remove_reader(pidfd)
        if process is self._vm.vmm:
            self._on_vmm_gone()  # it stays known until another VMM takes its place
            return
        self._vm.remove_process(process_id)
        _log.info("process %s no longer shares the VM's memory", process.pid or "(of unknown pid)")

    def check_served(self) -> None:
        """NotSupportedError if the userfaultfd of a process would not do while memory is out."""
        self._check_kept()
        for process in self._vm.processes.values():
            if not process.is_proven:
                raise NotSupportedError(
                    f"process {process.pid or '(forked)'}: nothing shows that its userfaultfd also serves"
                    " accesses by the kernel (KVM, vhost); without that they would fail: have the VMM"
                    f" {_advice(process)}"
                )

    def _check_kept(self) -> None:
        """If a process's userfaultfd dies with the monitor, the process reads zeros where memory is out."""
        for process in self._vm.processes.values():
            if not self._vm.is_kept(process):
                raise NotSupportedError(
                    f"process {process.pid or '(forked)'}: its userfaultfd would be lost if the monitor died,"
                    " because systemd keeps no more fds: raise FileDescriptorStoreMax=, or have the VM run"
                    " fewer forked children"
                )

    async def check_covered(self) -> None:
        """NotSupportedError if memory must not be swapped out: somebody would read zeros, or holds pages for
        good.
        """
        vm = self._vm
        mappers = MapperWatch()  # look at all processes first
        for looked in itertools.count(1):
            picture = await self._look(mappers)
            odd = await self._odd_child(picture)
            if not picture.strangers and not picture.private and odd is None:
                break
            if looked >= _LOOKS and picture.strangers:
                raise coverage.stranger_error(picture.strangers[0])
            if looked >= _LOOKS and picture.private:
                raise coverage.private_error(picture.private[0])
            if odd is not None and looked >= (_LOOKS if odd.pid else _LOOKS_FOR_PIDS):
                raise _odd_error(odd)
            await asyncio.sleep(_LOOK_AGAIN_S)
        unreadable = set(picture.unreadable) - self._told_unreadable
        if unreadable:
            self._told_unreadable |= unreadable
            _log.warning(
                "cannot tell if the processes %s map guest memory: their maps may not be read",
                ", ".join(map(str, sorted(unreadable)[:10])),
            )
        self.check_served()
        await asyncio.to_thread(coverage.check_not_locked, picture.mapped)
        await self.check_huge_pages(coverage.spans_of(picture.mapped))
        await asyncio.to_thread(coverage.check_buffers, coverage.question_of(vm))
        await self._holders.accept()

    async def check_huge_pages(self, spans: Iterable[tuple[int, int, int]]) -> None:
        """NotSupportedError if the kernel may put zeros where memory is out. spans: (pid, start, end)."""
        if await asyncio.to_thread(collapse.check, collapse.by_process(spans)) and not self._needs_denial:
            self._needs_denial = True
            self._vm.pulse.stir()  # whoever waits for a change looks at the setting from now on
            _log.info("only shmem_enabled=deny forbids huge pages of guest memory: leave it as it is")

    def _look_at_setting(self) -> None:
        """The setting that we rely on is the machine's, and root may change it."""
        if self._needs_denial and self._vm.engine.stats().tracking and not collapse.is_denied():
            self._needs_denial = False
            self._start_check(coverage.look)

    def _start_check(self, look: Callable[[coverage.Question], coverage.Picture]) -> None:
        self._check = self._loop.create_task(self._check_what_is_out(look), name="check of huge pages")

    async def _check_what_is_out(self, look: Callable[[coverage.Question], coverage.Picture]) -> None:
        """Until there is an answer, nobody knows whether the kernel may put zeros where memory is out."""
        failures = Failures("cannot check yet whether the kernel may make huge pages")
        while self._watched:
            try:
                if not self._vm.engine.is_tracking:
                    return
                picture = await asyncio.to_thread(look, coverage.question_of(self._vm))
                if self._watched:  # the VM has not ended meanwhile
                    await self.check_huge_pages(coverage.spans_of(picture.mapped))
                return
            except NotSupportedError as error:
                if not self._is_closed:
                    self._on_exposed(error)
                return
            except Exception as error:
                failures.log(error)
            await asyncio.sleep(_ALIVE_EVERY_S)

    async def _odd_child(self, picture: coverage.Picture) -> Process | None:
        """Return a forked child that does not map all that it is served with: something else may be there by
        now. A child of unknown pid maps none of it, unless its maps may be among the unreadable ones.
        """
        await self._forget_gone([item for item in self._vm.processes.values() if item.is_forked])
        for item in picture.known:
            process = self._vm.processes.get(item.process_id)
            pid = item.pid or picture.pids.get(item.process_id, 0)
            if process is None or not process.is_forked or process.pid != pid:
                continue
            own = [one.range for one in picture.mapped if one.pid == pid]
            has_left = not has_all(own, self._vm.engine.ranges_of(item.process_id))
            can_tell = coverage.shows_mappings(pid) if pid else not picture.unreadable
            if has_left and can_tell:
                return process
        return None

    async def _look(self, mappers: MapperWatch | None = None) -> coverage.Picture:
        """Return who maps the memory now; note pids that were found."""
        await self._forget_gone([item for item in self._vm.processes.values() if not item.pid])
        picture = await asyncio.to_thread(coverage.look, coverage.question_of(self._vm), mappers)
        if not self._watched:
            raise NoSuchVMError("the VM has ended")
        for process_id, pid in picture.pids.items():
            with guarded(f"process {pid}, forked by the VM, is not watched yet"):
                self._found(process_id, pid)
        return picture

    def _found(self, process_id: int, pid: int) -> None:
        process = self._vm.processes.get(process_id)
        if process is None or process.pid:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return  # it has ended meanwhile
        self._vm.found_pid(process, pid, pidfd)
        _log.info("process %s, forked by the VM, shares its memory", coverage.name_of(pid))
        self._watch(process)

    def _start_search(self) -> None:
        self._search_anew.set()
        if self._search is None or self._search.done():
            self._search = self._loop.create_task(self._find_pids(), name="search for pids")

    async def _find_pids(self) -> None:
        looks = 0
        while True:
            self._search_anew.clear()
            try:
                await self._look(self._mappers)
            except NoSuchVMError:
                return
            except (VmmswapError, OSError) as error:  # no fd left, say
                log_failure("cannot look for the pids of forked children", error)
            if all(process.pid or not process.ranges for process in self._vm.processes.values()):
                return
            await asyncio.sleep(_LOOK_AGAIN_S)
            if looks < len(_SEARCH_PAUSES_S):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._search_anew.wait(), _SEARCH_PAUSES_S[looks])
            if self._search_anew.is_set():
                looks = 0
            elif looks < len(_SEARCH_PAUSES_S):
                looks += 1
            else:
                return

    async def _forget_gone(self, processes: Sequence[Process]) -> None:
        gone = await self.liveness.gone(processes)
        for process in processes:
            if process.process_id in gone and not self._is_closed:
                self.gone(process.process_id)

    async def _look_alive(self) -> None:
        """A VMM that calls exec keeps its pidfd and, if careless, its connection: only its uffd shows it."""
        while True:
            if self._needs_denial:
                await asyncio.sleep(_ALIVE_EVERY_S)
            else:
                await self._vm.pulse.change()
            with guarded("the machine's setting for huge pages cannot be checked now"):
                self._look_at_setting()
            try:
                await self._forget_gone(list(self._vm.processes.values()))
            except Exception as error:
                log_failure("the end of a process is not recorded yet", error)
                self._vm.pulse.forget()

    def _watch(self, process: Process) -> None:
        if process.pidfd >= 0:
            self._watched[process.process_id] = process.pidfd
            self._loop.add_reader(process.pidfd, self._ended, process.process_id)

    def _ended(self, process_id: int) -> None:
        """A pidfd reports the end. Children of one parent look the same, so it may be another one's."""
        process = self._vm.processes[process_id]
        # It keeps reporting, which must not take all our time if what follows fails.
        self._loop.remove_reader(self._watched.pop(process_id))
        if process is self._vm.vmm:
            self._settle_end(process, has_gone=True)
        else:
            task = self._loop.create_task(self._ask_after_end(process), name="end of a process")
            self._ends.add(task)
            task.add_done_callback(self._ends.discard)

    async def _ask_after_end(self, process: Process) -> None:
        """The userfaultfd is certain; a process that lives must not lose its own."""
        gone = await self.liveness.gone([process])
        if not self._is_closed and self._vm.processes.get(process.process_id) is process:
            self._settle_end(process, has_gone=process.process_id in gone)

    def _settle_end(self, process: Process, *, has_gone: bool) -> None:
        with guarded(f"the end of process {process.pid} is not recorded; trying again"):
            if has_gone:
                self.gone(process.process_id)
            else:
                self._start_search()
                self._vm.lost_pid(process)
            return
        self._loop.call_later(_ALIVE_EVERY_S, self._watch_again, process)

    def _watch_again(self, process: Process) -> None:
        if not self._is_closed and self._vm.processes.get(process.process_id) is process:
            self._watch(process)


def _advice(process: Process) -> str:
    if not process.dummy_page:
        return "send a dummy_page"
    return (
        f"send a dummy_page that is empty: {process.dummy_page:#x} was touched before, or filled by"
        " mlockall(MCL_FUTURE)"
    )


def _check_apart(field: str, wanted: Range, process: Process) -> None:
    for item in process.ranges:
        if (
            wanted.addr < item.addr + item.pages * PAGE_SIZE
            and item.addr < wanted.addr + wanted.pages * PAGE_SIZE
        ):
            raise InvalidRegionError(
                f"{field}.base_host_virt_addr: {wanted.addr:#x}: process {process.pid} is served there"
                " already: send only further memory"
            )
        if wanted.page_idx < item.page_idx + item.pages and item.page_idx < wanted.page_idx + wanted.pages:
            raise InvalidRegionError(
                f"{field}.offset: process {process.pid} maps this memory already, at {item.addr:#x}: only one"
                " mapping in a process can be followed"
            )


def _odd_error(child: Process) -> NotSupportedError:
    name = f"process {coverage.name_of(child.pid)}" if child.pid else "a process of unknown pid"
    return NotSupportedError(
        f"{name}, forked by the VM, no longer maps all guest memory that it"
        " had, and cannot be followed: wait until it has ended"
    )
