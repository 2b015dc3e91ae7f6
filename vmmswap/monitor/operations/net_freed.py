# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host really got back of one VM's memory, by the kernel's figures: docs/store.md argues them."""

from __future__ import annotations

import contextlib
import os

from vmmswap.engine import EngineStats
from vmmswap.file_system import ON_RAM
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.linux.process import status_of
from vmmswap.monitor import own_memory
from vmmswap.monitor.vm import Vm

_ENTRY_BYTES = 8  # in a page table, for each page


def baseline(vm: Vm) -> dict[str, int]:
    """How things are before the first page goes out, for the VM's record: the figures are measured by it."""
    stats = vm.stats()
    if stats.tracking:
        return {}
    return {"resident_before": stats.resident_pages, "tables_before": _page_tables_bytes(vm)}


def net_freed_bytes(vm: Vm, stats: EngineStats) -> int:
    """0 while nothing is out, and if it costs more than it frees."""
    if not stats.tracking or vm.backing.source_is_store:
        return 0
    return max(0, _freed_bytes(vm, stats) - _taken_bytes(vm) - _new_tables_bytes(vm, stats))


def _freed_bytes(vm: Vm, stats: EngineStats) -> int:
    """What is resident less than when the first page went out, zeros included. A guest that has grown since
    hides a part of that: what is out is gone in any case.
    """
    less_pages = vm.manifest.resident_before - stats.resident_pages
    return max(less_pages, stats.swap_pages) * PAGE_SIZE


def _taken_bytes(vm: Vm) -> int:
    """What the VM's memory takes elsewhere: in the store, and to know and serve it."""
    engine = vm.engine
    tiers = engine.tier_fds
    on_ram = [engine.page_map_fd, engine.wake_fd, tiers.segments, tiers.ram]
    if engine.store_file_system in ON_RAM:
        on_ram += [engine.store_fd, tiers.disk]
    files_bytes = sum(os.fstat(fd).st_blocks * 512 for fd in on_ram if fd >= 0)
    return files_bytes + own_memory.grown_bytes()


def _new_tables_bytes(vm: Vm, stats: EngineStats) -> int:
    """Page tables of the VM's processes that going out has made. A guest at work and forks make some, too, so
    no more than what is out can need.
    """
    if not vm.manifest.tables_before:
        return 0  # not known
    grown_bytes = max(0, _page_tables_bytes(vm) - vm.manifest.tables_before)
    return min(grown_bytes, stats.swap_pages * _ENTRY_BYTES * len(vm.processes))


def _page_tables_bytes(vm: Vm) -> int:
    """All page tables of the VM's processes."""
    total_bytes = 0
    for process in vm.processes.values():
        with contextlib.suppress(OSError, KeyError):  # it has ended, or is a zombie
            total_bytes += int(status_of(process.pid)["VmPTE"].split()[0]) * 1024 if process.pid else 0
    return total_bytes
