# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions to the kernel that need no engine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vmmswap.engine.native import ffi, lib, text_of
from vmmswap.errors import from_errno


def registered_buffer_in(ranges: Sequence[tuple[int, int, int]]) -> str | None:
    """Describe for people a buffer that an io_uring of these processes has registered in their guest
    memory; None: there is none. ranges: (pid, addr, size_bytes).
    """
    c_ranges = ffi.new("struct uring_range[]", max(1, len(ranges)))
    for idx, (pid, addr, size_bytes) in enumerate(ranges):
        c_ranges[idx].pid, c_ranges[idx].addr, c_ranges[idx].size_bytes = pid, addr, size_bytes
    found = ffi.new("struct uring_found *")
    error = ffi.new("struct error *")
    rc = lib.uring_buffers_find(c_ranges, len(ranges), found, error)
    if rc < 0:
        raise from_errno(-rc, text_of(error.message))
    return text_of(error.message) if rc else None


def start_probe_read(pid: int, addr: int, go_fd: int) -> int:
    """Start a child that reads one byte of a process in kernel mode once a byte comes through go_fd.

    Returns its pid, which the caller waits for.

    Its status is 0, or the errno of process_vm_readv(). OSError if it cannot be started.
    """
    child = int(lib.probe_read_start(pid, addr, go_fd))
    if child < 0:
        raise OSError(-child, f"cannot start a process: {os.strerror(-child)}")
    return child


def is_page_there(pid: int, addr: int) -> bool:
    """True if a process has a page on RAM at that address. Fills nothing, and needs no right to open the
    process's page map. OSError.
    """
    there = int(lib.page_is_there(pid, addr))
    if there < 0:
        raise OSError(-there, f"cannot ask what process {pid} has on RAM: {os.strerror(-there)}")
    return bool(there)


def try_collapse() -> bool | None:
    """True if this kernel fills holes of shared memory with zeros where a userfaultfd is registered, when it
    makes a huge page of what surrounds them; tried on memory of our own. None: nothing can be collapsed now.
    """
    error = ffi.new("struct error *")
    rc = lib.collapse_try_holes(error)
    if rc < 0:
        raise from_errno(-rc, text_of(error.message))
    return None if rc == lib.COLLAPSE_UNKNOWN else bool(rc == lib.COLLAPSE_FILLS_HOLES)
