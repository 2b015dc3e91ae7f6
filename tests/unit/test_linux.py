# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap/linux/: what /proc tells of a process, and what the kernel says of fds."""

import ctypes
import mmap
import os
import threading
from pathlib import Path

import pytest

from vmmswap.linux import cgroup, mounts
from vmmswap.linux.files import FileId, file_id, file_id_unasked
from vmmswap.linux.maps import (
    NO_HUGE_PAGES,
    Mapping,
    anonymous_kib_of_mappings,
    flags_of_mappings,
    joined,
    read_mappings,
)
from vmmswap.linux.memory import meminfo_bytes
from vmmswap.linux.process import is_alive, is_same_file, is_same_memory, status_of, thread_ids

PAGE = mmap.PAGESIZE
FILE = FileId(1, 7)


@pytest.fixture
def memfd():
    fd = os.memfd_create("two\nlines", os.MFD_CLOEXEC)
    os.ftruncate(fd, 16 * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def dead():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def addr_of(memory):
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def test_a_mapping_is_read_as_it_was_made(memfd):
    memory = mmap.mmap(memfd, 4 * PAGE, offset=2 * PAGE)
    start = addr_of(memory)
    [mapping] = [item for item in read_mappings(os.getpid()) if item.start == start]
    assert mapping == Mapping(
        start, start + 4 * PAGE, "rw-s", 2 * PAGE, file_id(memfd), "/memfd:two\\012lines (deleted)"
    )
    assert mapping.overlaps(start + 4 * PAGE - 1, start + 5 * PAGE)
    assert not mapping.overlaps(start + 4 * PAGE, start + 5 * PAGE)


def test_flags_and_anonymous_memory_are_those_of_their_mapping():
    memory = mmap.mmap(-1, 64 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory.write(bytes(8 * PAGE))
    start = addr_of(memory)
    [flags] = [flags for item, flags in flags_of_mappings(os.getpid()) if item.start == start]
    [kib] = [kib for item, kib in anonymous_kib_of_mappings(os.getpid()) if item.start == start]
    assert NO_HUGE_PAGES in flags
    assert kib == 8 * PAGE // 1024


def test_neighbours_of_one_file_that_continue_each_other_are_one():
    first, second = Mapping(0, PAGE, "rw-s", 0, FILE), Mapping(PAGE, 3 * PAGE, "rw-s", PAGE, FILE)
    assert joined([first, second]) == [Mapping(0, 3 * PAGE, "rw-s", 0, FILE)]
    for other in (
        Mapping(PAGE, 2 * PAGE, "r--s", PAGE, FILE),
        Mapping(PAGE, 2 * PAGE, "rw-s", 0, FILE),
        Mapping(2 * PAGE, 3 * PAGE, "rw-s", PAGE, FILE),
        Mapping(PAGE, 2 * PAGE, "rw-s", PAGE, FileId(1, 8)),
    ):
        assert joined([first, other]) == [first, other]
    anonymous = Mapping(0, PAGE, "rw-p", 0, FileId(0, 0))
    assert len(joined([anonymous, Mapping(PAGE, 2 * PAGE, "rw-p", PAGE, FileId(0, 0))])) == 2


def test_a_process_that_has_ended_is_told_as_that(dead):
    for read in (read_mappings, status_of, thread_ids, lambda pid: list(flags_of_mappings(pid))):
        with pytest.raises((FileNotFoundError, ProcessLookupError)):
            read(dead)


def test_a_file_is_the_same_through_another_fd_and_no_other(memfd):
    twin, other = os.dup(memfd), os.open(f"/proc/self/fd/{memfd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        assert is_same_file(os.getpid(), twin, memfd)
        assert not is_same_file(os.getpid(), other, memfd)  # opened anew: its position is its own
        assert file_id_unasked(other) == file_id(memfd)
    finally:
        os.close(twin)
        os.close(other)


def test_threads_and_the_status_of_each():
    ready, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (ready.set(), end.wait()), name="one")
    thread.start()
    ready.wait()
    try:
        assert thread.native_id in thread_ids(os.getpid())
        assert status_of(os.getpid(), thread.native_id)["Pid"] == str(thread.native_id)
        assert status_of(os.getpid())["Uid"].split()[0] == str(os.getuid())
    finally:
        end.set()
        thread.join()


def test_a_child_has_memory_of_its_own_and_ends():
    near, far = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(far)
        os.read(near, 1)
        os._exit(0)
    os.close(near)
    pidfd = os.pidfd_open(child)
    try:
        assert is_alive(pidfd)
        assert not is_same_memory(child, os.getpid())
        os.close(far)
        os.waitpid(child, 0)
        assert not is_alive(pidfd)
    finally:
        os.close(pidfd)


def test_a_line_of_mountinfo():
    line = "36 35 98:1 /mnt1 /mnt\\040two rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue"
    assert mounts._mount(line) == mounts.Mount(
        36, os.makedev(98, 1), Path("/mnt two"), "ext3", ("rw", "errors=continue")
    )
    assert any(mount.point == Path("/proc") and mount.kind == "proc" for mount in mounts.read_mounts())
    assert {mount.kind for mount in mounts.read_mounts(kinds=("proc",))} == {"proc"}


def test_a_cgroup_and_those_around_it():
    assert cgroup._with_those_around(Path("/c"), "/a/b") == (Path("/c/a/b"), Path("/c/a"), Path("/c"))
    assert cgroup._with_those_around(Path("/c"), "/") == (Path("/c"),)
    for hierarchy in cgroup.hierarchies_of("memory"):
        for group in cgroup.groups_of(os.getpid(), hierarchy)[-1:]:
            assert group == hierarchy.point


def test_the_hosts_memory():
    total, available = meminfo_bytes("MemTotal", "MemAvailable")
    assert 0 < available < total
    with pytest.raises(OSError, match="no MemNever"):
        meminfo_bytes("MemNever")
