# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM that was attached to and whose memory is private: nobody else can map it, and its VMM tells nothing.

What the VMM has added or given up is seen in its mappings before each Enable. What it unmaps while memory is
out the kernel reports (EVENT_UNMAP), so that its contents never come back in what is mapped there next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

from vmmswap.attach.attach import check_devices_of
from vmmswap.attach.frozen import check_not_frozen
from vmmswap.attach.further_private import PrivateView, look_at_private, serve_further
from vmmswap.attach.replant import replant
from vmmswap.errors import BusyError, NoSuchVMError, NotSupportedError
from vmmswap.handoff.region import PAGE_SIZE, Region, private_region
from vmmswap.linux.process import is_alive
from vmmswap.monitor.mappers import coverage
from vmmswap.monitor.mappers.private import PrivateWatch
from vmmswap.monitor.mappers.processes import Processes
from vmmswap.monitor.mappers.qemu_memory import ask_ram_blocks
from vmmswap.monitor.vm import Vm

_log = logging.getLogger("vmmswap.attached")


class AttachedPrivateWatch(PrivateWatch):
    """barrier: waits until the fd store has all."""

    def __init__(self, vm: Vm, processes: Processes, barrier: Callable[[], Awaitable[None]]) -> None:
        super().__init__(vm, processes)
        self._barrier = barrier
        self._is_closed = False

    def close(self) -> None:
        self._is_closed = True

    async def check_before_enable(self) -> None:
        vmm = self._vm.vmm
        await asyncio.to_thread(check_devices_of, vmm.pidfd)
        self._check_open()
        await self._follow(await asyncio.to_thread(look_at_private, vmm.pidfd))
        self._check_open()
        await self._have_mover()
        await super().check_before_enable()

    def check_before_exit(self) -> None:
        """BusyError if the VMM is frozen: what was put into it could not be removed."""
        vmm = self._vm.vmm
        if is_alive(vmm.pidfd):
            check_not_frozen(vmm.pid, f"process {coverage.name_of(vmm.pid)}")

    def _check_open(self) -> None:
        if self._is_closed:
            raise NoSuchVMError("the VM has ended")

    async def _have_mover(self) -> None:
        """If the thread that moves pages is gone, there is another one now."""
        vm = self._vm
        assert vm.mailbox is not None  # noqa: S101 - attach planted the thread
        spans = _spans(self._regions())
        if await asyncio.to_thread(replant, vm.vmm.pidfd, vm.mailbox, spans, force=vm.manifest.forced):
            _log.warning(
                "the thread of process %d that moves its pages was gone: it has another one", vm.vmm.pid
            )
        self._check_open()

    async def _follow(self, view: PrivateView) -> None:
        """What is gone is forgotten, what is new is served."""
        for region in [item for item in self._regions() if not self._is_there(item, view)]:
            await self._forget(region)
        known = self._regions()
        new = [] if self._vm.manifest.chosen else await self._further(known, view)
        if new:
            await self._add(known, new)
        if not self._regions():
            raise NotSupportedError(
                f"process {self._vm.vmm.pid} has none of its guest's memory any more: detach, and attach"
                " again"
            )
        await self._barrier()

    async def _further(self, known: Sequence[Region], view: PrivateView) -> list[Region]:
        """QEMU is asked only if something may be new."""
        new = view.further(known)
        if not new or not self._vm.manifest.qmp:
            return new
        blocks = await ask_ram_blocks(self._vm.manifest.qmp, self._vm.vmm.pid)
        self._check_open()
        return view.further(known, blocks)

    def _regions(self) -> list[Region]:
        return [private_region(item.addr, item.pages * PAGE_SIZE) for item in self._vm.manifest.regions]

    def _is_there(self, region: Region, view: PrivateView) -> bool:
        """Not if it was unmapped meanwhile, though something else is there by now."""
        served = [(item.addr, item.addr + item.pages * PAGE_SIZE) for item in self._vm.vmm.ranges]
        return view.has(region) and any(start <= region.addr and region.end <= end for start, end in served)

    async def _forget(self, region: Region) -> None:
        what = f"guest memory ({region.size_bytes >> 20} MiB at {region.addr:#x})"
        try:
            await self._vm.remove_regions([region])
        except BusyError as error:
            raise BusyError(
                f"the VMM has unmapped {what}, or a part of it, and it cannot be released now"
                f" ({error.message}): call Disable, then Enable"
            ) from None
        _log.info("the VMM has unmapped %s: it is released", what)

    async def _add(self, known: Sequence[Region], new: Sequence[Region]) -> None:
        vm = self._vm
        assert vm.mailbox is not None  # noqa: S101 - attach planted the thread
        spans = _spans((*known, *new))
        await asyncio.to_thread(serve_further, vm.vmm.pidfd, vm.mailbox, spans, force=vm.manifest.forced)
        self._check_open()
        vm.add_memory([], new)
        for region in new:
            _log.info("guest memory was added: %d MiB at %#x", region.size_bytes >> 20, region.addr)


def _spans(regions: Iterable[Region]) -> list[tuple[int, int]]:
    return [(region.addr, region.size_bytes) for region in regions]
