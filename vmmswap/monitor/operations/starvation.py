# SPDX-License-Identifier: GPL-2.0-or-later
"""Page faults that wait because there is no memory for their pages: which memory, told once an incident.

The kernel says ENOMEM to UFFDIO_COPY whatever is full. A file system that is tells so itself (statfs); the
kernel's own tmpfs, of memfds, has no limit. Else it is the host, or the limit of a cgroup.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterable

from vmmswap import message_ids
from vmmswap.errors import NoSpaceError
from vmmswap.linux.mounts import read_mounts
from vmmswap.log import fields
from vmmswap.monitor.operations.headroom import AT_ONCE, find_hierarchies, look
from vmmswap.monitor.vm import Vm

_log = logging.getLogger("vmmswap.starvation")

_LOOK_S = 1.0


def full_file_system(memfds: Iterable[int], pid: int) -> str:
    """The file system of guest memory that has no page left, and what to do; empty: none is full. pid: of the
    VMM, which may see it elsewhere than we do.
    """
    for memfd in memfds:
        size = os.fstatvfs(memfd)
        if size.f_blocks and not size.f_bavail:
            point = _mount_point(os.fstat(memfd).st_dev, pid)
            total_mib = size.f_blocks * size.f_frsize >> 20
            where = f"the file system at {point}" if point else "the file system"
            more = f"`mount -o remount,size=SIZE {point}`" if point else "a remount with a larger size="
            return (
                f"{where} that holds guest memory is full ({total_mib} MiB): remove other files from it,"
                f" or enlarge it with {more}"
            )
    return ""


def _mount_point(device: int, pid: int) -> str:
    """Where a file system is mounted; empty: nowhere that we see."""
    for process in (pid, os.getpid()):
        with contextlib.suppress(OSError):
            for mount in read_mounts(process):
                if mount.dev == device:
                    return str(mount.point)
    return ""


class Starvation:
    """Of one VM. error: why page faults wait, None: none does. pids: whose cgroups pay for pages."""

    def __init__(self, vm: Vm, pids: Callable[[], list[int]], on_change: Callable[[], None]) -> None:
        self._vm = vm
        self._pids = pids
        self._on_change = on_change
        self._hierarchies = find_hierarchies()
        self._timer: asyncio.TimerHandle | None = None
        self.error: NoSpaceError | None = None

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def found(self, page_idx: int) -> None:
        """The engine's notice, about the first page that there is no memory for."""
        self.error = NoSpaceError(f"the guest waits for memory: {self._reason(page_idx)}")
        _log.error("%s", self.error, extra=fields("", message_ids.GUEST_WAITS))
        self.stop()
        self._look_later()
        self._on_change()

    def why_not_all(self) -> str:
        """Why a swap-in ended for want of memory; empty: no file system is full."""
        return full_file_system(self._vm.memfds.values(), self._vm.vmm.pid)

    def _reason(self, page_idx: int) -> str:
        memfds = [
            self._vm.memfds[item.memfd]
            for item in self._vm.manifest.regions
            if item.page_idx <= page_idx < item.page_idx + item.pages and item.memfd in self._vm.memfds
        ]
        if full := full_file_system(memfds, self._vm.vmm.pid):
            return full
        limit = look(self._pids()[:AT_ONCE], self._hierarchies).limit
        return (
            f"the kernel has none for a page that it touched. The tightest limit: {limit}. Free memory"
            " there, or raise the limit"
        )

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._vm.engine.starvation_over():
            self._look_later()
            return
        self.error = None
        _log.info("the guest no longer waits for memory")
        self._on_change()
