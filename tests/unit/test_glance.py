# SPDX-License-Identifier: GPL-2.0-or-later
"""A glance stays the same while nothing changes, and shows whatever a watch would find."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from vmmswap.monitor import glance
from vmmswap.monitor.glance import Glance

HOLDS = "import sys; print(flush=True); sys.stdin.read()"
MAPS = "import mmap, os, sys; m = mmap.mmap(int(sys.argv[1]), 4096); os.close(int(sys.argv[1])); " + HOLDS


@pytest.fixture
def vm():
    """With memory out, and one process."""
    memfd = os.memfd_create("guest")
    os.ftruncate(memfd, 4096)
    process = SimpleNamespace(uffd=7, has_gone=False)
    yield SimpleNamespace(
        memfds={0: memfd},
        processes={1: process},
        engine=SimpleNamespace(is_tracking=True),
        pulse=SimpleNamespace(max_age_s=0.0),
    )
    os.close(memfd)


@pytest.fixture
def gone(monkeypatch, tmp_path):
    """The userfaultfds of processes that have ended."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    uffds: set[int] = set()
    monkeypatch.setattr(glance, "is_gone", uffds.__contains__)
    return uffds


@contextmanager
def other(vm, program):
    """A process that has the memory."""
    memfd = vm.memfds[0]
    command = [sys.executable, "-c", program, str(memfd)]
    with subprocess.Popen(
        command, pass_fds=[memfd], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        yield
        process.communicate()


def far():
    return True


def seen(looking):
    return looking.prepare()()


@pytest.mark.parametrize("program", [HOLDS, MAPS])
@pytest.mark.usefixtures("gone")
def test_a_process_that_has_the_memory_is_seen_as_it_comes_and_as_it_goes(vm, program):
    looking = Glance(vm, lambda: far)
    before = seen(looking)
    assert before is not None
    assert seen(looking) == before
    with other(vm, program):
        with_it = seen(looking)
        assert with_it != before
        assert seen(looking) == with_it
    assert seen(looking) == before


def test_the_end_of_a_process_has_all_look(vm, gone):
    looking = Glance(vm, lambda: far)
    gone.add(7)
    assert seen(looking) is None
    vm.processes[1].has_gone = True  # and is known
    assert seen(looking) is not None


@pytest.mark.usefixtures("gone")
def test_pressure_that_is_near_has_all_look(vm):
    assert seen(Glance(vm, lambda: lambda: None)) is None


@pytest.mark.usefixtures("gone")
def test_while_all_is_in_nobody_is_looked_for(vm):
    looking = Glance(vm, lambda: far)
    vm.engine.is_tracking = False
    before = seen(looking)
    with other(vm, HOLDS):
        assert seen(looking) == before


def test_where_each_look_is_one_at_all_processes_there_is_no_glance(vm, monkeypatch):
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    assert Glance(vm, lambda: far).prepare() is None
