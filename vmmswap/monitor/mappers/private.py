# SPDX-License-Identifier: GPL-2.0-or-later
"""Who has private memory that its VMM moves: nobody but the VMM, and children that it should not have."""

from __future__ import annotations

import asyncio

from vmmswap.errors import InvalidRegionError, NotSupportedError
from vmmswap.handoff import private
from vmmswap.handoff.direct_files import check_direct_files
from vmmswap.handoff.region import PAGE_SIZE, private_region
from vmmswap.monitor.keep import fdstore
from vmmswap.monitor.mappers.lookout import Watcher
from vmmswap.monitor.mappers.processes import Processes
from vmmswap.monitor.vm import Vm


class PrivateWatch(Watcher):
    """Nobody else can begin to map it. What the VMM has may have changed since it registered."""

    def __init__(self, vm: Vm, processes: Processes) -> None:
        super().__init__(processes)
        self._vm = vm

    async def check_before_enable(self) -> None:
        """NotSupportedError if memory must not leave."""
        if not self._vm.store.keeps(fdstore.MAILBOX):
            raise NotSupportedError("the mailbox is not kept for a successor: see the journal")
        self._processes.check_served()
        vmm, mailbox = self._vm.vmm, self._vm.mailbox
        if mailbox is not None and not private.has_mover(vmm.pid, mailbox):
            raise NotSupportedError(
                f"process {vmm.pid} has no thread any more that moves its pages: what is out is served, and"
                " nothing more can go out"
            )
        regions = [private_region(item.addr, item.pages * PAGE_SIZE) for item in vmm.ranges]
        try:
            await asyncio.to_thread(private.check_memory, vmm.pid, regions)
        except InvalidRegionError as error:
            raise NotSupportedError(
                f"the VMM has changed its memory since it registered: {error.message}"
            ) from None
        await asyncio.to_thread(check_direct_files, vmm.pid)
