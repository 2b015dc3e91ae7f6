# SPDX-License-Identifier: GPL-2.0-or-later
"""One look at all processes of the host serves all monitors that share a directory."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmmswap.engine import Range
from vmmswap.monitor.host_looks import HostLooks
from vmmswap.monitor.keep.manifest import RegionRecord
from vmmswap.monitor.mappers import coverage

PICTURES = ("fds-1", "maps-1")
LONG_S = 3600.0
MAPS = "import mmap, sys; m = mmap.mmap(int(sys.argv[1]), 4096, {}); print(); sys.stdin.read()"


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 4096)
    yield fd
    os.close(fd)


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    return tmp_path


def question_of(memfd: int, pid: int = 0) -> coverage.Question:
    known = (coverage.ServedProcess(1, pid, (Range(0x1000, 0, 1),)),) if pid else ()
    return coverage.Question(known, (memfd,), (RegionRecord(0x1000, 0, 1, 0, 0),))


@contextmanager
def mapper(memfd: int, flags: str) -> Iterator[int]:
    """A process that maps the memory. Yields its pid."""
    command = [sys.executable, "-c", MAPS.format(flags), str(memfd)]
    with subprocess.Popen(
        command, pass_fds=[memfd], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid
        process.communicate()


def test_the_looks_of_one_monitor_serve_another(shared: Path, memfd: int) -> None:
    with mapper(memfd, "mmap.MAP_SHARED") as pid:
        found = []
        for max_age_s in (0.0, LONG_S):
            looks = HostLooks()
            strangers = looks.mapped(question_of(memfd), max_age_s).strangers
            holders = looks.holders(question_of(memfd), 0, max_age_s)
            pictures = [(shared / name).stat().st_ino for name in PICTURES]
            found.append((strangers, holders, pictures))
    assert [one.pid for one in found[0][0]] == [pid]
    assert pid in {one.pid for one in found[0][1]}
    assert found[0] == found[1]


@pytest.mark.usefixtures("shared")
def test_a_look_that_is_too_old_is_made_anew(memfd: int) -> None:
    looks = HostLooks()
    assert not looks.mapped(question_of(memfd), 0.0).private
    with mapper(memfd, "mmap.MAP_PRIVATE") as pid:
        assert not looks.mapped(question_of(memfd), LONG_S).private
        assert [one.pid for one in looks.mapped(question_of(memfd), 0.0).private] == [pid]
    assert not looks.mapped(question_of(memfd), LONG_S).private  # gone, whatever the look has seen


@pytest.mark.usefixtures("shared")
def test_who_is_served_is_no_holder(memfd: int) -> None:
    with mapper(memfd, "mmap.MAP_SHARED") as pid:
        assert pid in {one.pid for one in HostLooks().holders(question_of(memfd), 0, 0.0)}
        assert pid not in {one.pid for one in HostLooks().holders(question_of(memfd, pid), 0, LONG_S)}


@pytest.mark.parametrize("is_there", [False, True])
def test_without_a_directory_each_looks_by_itself(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    memfd: int,
    *,
    is_there: bool,
) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    if is_there:
        monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "gone"))
    looks = HostLooks()
    with mapper(memfd, "mmap.MAP_SHARED") as pid, caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert [one.pid for one in looks.mapped(question_of(memfd), LONG_S).strangers] == [pid]
            assert pid in {one.pid for one in looks.holders(question_of(memfd), 0, LONG_S)}
    assert len(caplog.records) == int(is_there)


@pytest.mark.usefixtures("shared")
def test_memory_in_other_files_is_looked_for_by_each(tmp_path: Path) -> None:
    with (tmp_path / "named").open("w+b") as file:
        file.truncate(4096)
        with mapper(file.fileno(), "mmap.MAP_SHARED") as pid:
            found = HostLooks().holders(question_of(file.fileno()), 0, LONG_S)
    assert pid in {one.pid for one in found}
