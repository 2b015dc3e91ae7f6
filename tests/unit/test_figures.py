# SPDX-License-Identifier: GPL-2.0-or-later
"""ResidentPages is true whatever a VMM does with its files: they grow, shrink, and are shared by regions."""

import ctypes
import errno
import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from vmmswap.engine import Engine, EngineConfig

PAGE = 4096
FILE_PAGES = 64
KEEP_SIZE, PUNCH_HOLE = 1, 2

pages = strategies.integers(0, FILE_PAGES * 2 - 1)
counts = strategies.integers(1, FILE_PAGES)
_libc = ctypes.CDLL(None, use_errno=True)


def has_cachestat():
    return _libc.syscall(451, -1, None, None, 0) == -1 and ctypes.get_errno() == errno.EBADF


CACHESTAT = has_cachestat()


def fallocate(fd, mode, first, count):
    offset, size = ctypes.c_int64(first * PAGE), ctypes.c_int64(count * PAGE)
    assert _libc.fallocate(fd, mode, offset, size) == 0, os.strerror(ctypes.get_errno())


class Model:
    """A memfd: which pages it has, how long it is, and which of it is guest memory."""

    def __init__(self):
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        self.size = FILE_PAGES
        self.there = set()
        self.written = set()  # of these: all that kernels before 6.5 count where they cannot use st_blocks
        self.regions = []  # page_idx, first, count
        os.ftruncate(self.fd, self.size * PAGE)

    def is_free(self, first, count):
        return all(first >= other + n or other >= first + count for _, other, n in self.regions)

    def resident(self, pages):
        """Of all regions. Pages that are there beyond the file's end are not in the file."""
        return sum(
            sum(first <= page < first + count and page < self.size for page in pages)
            for _, first, count in self.regions
        )

    def keep(self, condition):
        self.there = {page for page in self.there if condition(page)}
        self.written &= self.there


class Files(RuleBasedStateMachine):
    """A VMM's files, two of them, and the engine that has regions of them."""

    @initialize()
    def begin(self):
        self.directory = tempfile.TemporaryDirectory()
        self.engine = Engine(EngineConfig(Path(self.directory.name), fault_threads=1, workers=1))
        self.files = [Model(), Model()]

    def teardown(self):
        self.engine.close()
        for file in self.files:
            os.close(file.fd)
        self.directory.cleanup()

    file = strategies.integers(0, 1)

    @rule(number=file, first=pages, count=counts)
    def add_region(self, number, first, count):
        file = self.files[number]
        if first + count <= file.size and file.is_free(first, count):
            file.regions.append((self.engine.add_region(file.fd, first * PAGE, count * PAGE), first, count))

    @rule(number=file)
    def add_all_that_is_left(self, number):
        file = self.files[number]
        first = max((first + count for _, first, count in file.regions), default=0)
        if first < file.size:
            self.add_region(number, first, file.size - first)

    @precondition(lambda self: any(file.regions for file in self.files))
    @rule(data=strategies.data())
    def remove_region(self, data):
        file = data.draw(strategies.sampled_from([file for file in self.files if file.regions]))
        region = data.draw(strategies.sampled_from(file.regions))
        file.regions.remove(region)
        self.engine.remove_region(region[0])

    @rule(number=file, first=pages, count=counts)
    def write(self, number, first, count):
        file = self.files[number]
        count = min(count, file.size - first)
        if count > 0:
            os.pwrite(file.fd, b"\1" * count * PAGE, first * PAGE)
            file.there |= set(range(first, first + count))
            file.written |= set(range(first, first + count))

    @rule(number=file, first=pages, count=counts)
    def punch(self, number, first, count):
        file = self.files[number]
        fallocate(file.fd, PUNCH_HOLE | KEEP_SIZE, first, count)
        file.keep(lambda page: not first <= page < first + count)

    @rule(number=file, size=strategies.integers(0, FILE_PAGES * 2))
    def resize(self, number, size):
        file = self.files[number]
        os.ftruncate(file.fd, size * PAGE)
        if size <= file.size:
            file.keep(lambda page: page < size)
        file.size = size

    @rule(number=file, first=pages, count=counts)
    def allocate(self, number, first, count):
        """Beyond the end, too."""
        file = self.files[number]
        fallocate(file.fd, KEEP_SIZE, first, count)
        file.there |= set(range(first, first + count))

    @invariant()
    def figures_are_true(self):
        if not hasattr(self, "engine"):
            return
        total = sum(count for file in self.files for _, _, count in file.regions)
        stats = self.engine.stats()
        assert stats.total_pages == total
        assert stats.resident_pages <= total, "before anything is counted, too"
        if self.engine.needs_count:
            self.engine.count_resident()
            stats = self.engine.stats()
        # Pages that were allocated beyond the end are told from others only if there are more than fit in.
        beyond = sum(page >= file.size for file in self.files for page in file.there)
        resident = sum(file.resident(file.there) for file in self.files)
        least = resident if CACHESTAT else sum(file.resident(file.written) for file in self.files)
        assert least <= stats.resident_pages <= min(total, resident + beyond)


def test_figures_are_true_whatever_a_vmm_does_with_its_files():
    run_state_machine_as_test(
        Files,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
