# SPDX-License-Identifier: GPL-2.0-or-later
"""Sets a VM up: its engine, its record, and all that the fd store keeps of it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import astuple, replace
from pathlib import Path

from vmmswap.config import Config
from vmmswap.engine import Engine, Mover
from vmmswap.monitor.backing import of_new
from vmmswap.monitor.engine_config import engine_config
from vmmswap.monitor.keep import fdstore
from vmmswap.monitor.keep.fdstore import FdStore
from vmmswap.monitor.keep.manifest import Manifest, ManifestFile
from vmmswap.monitor.new_vm import NewVm
from vmmswap.monitor.on_thread import made_on_thread
from vmmswap.monitor.vm import Vm


async def create_engine(new: NewVm, config: Config, swap_dir: Path) -> Engine:
    """Make an engine without memory. The event loop does not wait for the swap directory's disk."""
    snapshot = None if new.snapshot is None else os.dup(new.snapshot)  # its owner may give up meanwhile
    mover = None if new.mover is None else _dup(new.mover)

    def create() -> Engine:
        backing = of_new(new)
        try:
            return Engine(
                engine_config(
                    config,
                    swap_dir,
                    backing,
                    guest_bytes=sum(region.size_bytes for region in new.vmm.regions),
                    has_tiers=not (config.is_plain or backing.source_is_store),
                ),
                store_fd=snapshot,
                mover=mover,
            )
        finally:
            if snapshot is not None:
                os.close(snapshot)
            if mover is not None:
                os.close(mover.mailbox)
                os.close(mover.pagemap)

    return await made_on_thread(create, lambda engine: engine.close())


def _dup(mover: Mover) -> Mover:
    return replace(mover, mailbox=os.dup(mover.mailbox), pagemap=os.dup(mover.pagemap))


def register(name: str, new: NewVm, config: Config, engine: Engine, store: FdStore) -> Vm:
    """Set a VM up, and register the dummy page. If this raises, only the engine is left of it. What is in the
    fd store is safe there only after store.barrier(). Call engine.start() then, and not earlier: a page that
    was brought in, or an event that was read, must not be forgotten with a record that was not kept.
    """
    backing = of_new(new)
    with contextlib.ExitStack() as undo:
        file = ManifestFile()
        undo.callback(file.close)
        manifest = Manifest(
            name=name,
            uid=new.uid,
            pins=new.pins,
            qmp=new.qmp or "",
            attached=new.attached,
            forced=new.forced,
            chosen=new.chosen,
            ordered_by=new.ordered_by.uid,
            ordered_by_gid=new.ordered_by.gid,
            config=config.to_json(),
        )
        vm = Vm(engine, backing.as_recorded(manifest), file, store)
        undo.callback(_close_fds, vm)
        undo.callback(store.remove_all)
        vm.change()
        vm.add_memfds(new.memfds)
        vm.add_regions(new.vmm.regions, mapped_by=None)
        vm.add_process(new.vmm)
        store.add(fdstore.PAGE_MAP, engine.page_map_fd)
        store.add(fdstore.WAKE, engine.wake_fd)
        if engine.store_fd >= 0:
            store.add(fdstore.STORE, engine.store_fd)
        for kept, fd in zip(fdstore.TIERS, astuple(engine.tier_fds), strict=True):
            if fd >= 0:
                store.add(kept, fd)
        if new.mover is not None:
            store.add(fdstore.MAILBOX, new.mover.mailbox)
            store.add(fdstore.PAGEMAP, new.mover.pagemap)
            vm.mailbox = os.dup(new.mover.mailbox)
        if new.connection is not None:
            store.add(fdstore.CONNECTION, new.connection)
        store.add(fdstore.MANIFEST, file.fd)
        undo.pop_all()
    return vm


def _close_fds(vm: Vm) -> None:
    for fd in (*vm.memfds.values(), *(() if vm.mailbox is None else (vm.mailbox,))):
        os.close(fd)
    for process in vm.processes.values():
        process.close()
