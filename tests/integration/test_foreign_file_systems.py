# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks for who has guest memory open meet a stranger's file with the memory's inode number, whose file
system does not answer.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.blocking_files import FuseFile

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else, and to mount")

_NOBODY = 65534
_LOOK = """
import sys
from vmmswap.engine import holders_of
input()
print(*(f"{holder.pid}:{holder.fd}" for holder in holders_of([int(sys.argv[1])])))
"""


@contextlib.contextmanager
def looking(memory: int, *, as_in_the_unit: bool) -> Iterator[subprocess.Popen[str]]:
    """Starts before there is a file that its fork would have to close."""
    bare = ["setpriv", "--bounding-set=-all,+sys_ptrace"] if as_in_the_unit else []
    with subprocess.Popen(
        [*bare, sys.executable, "-c", _LOOK, str(memory)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        pass_fds=[memory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def holding(fd: int, user: int) -> Iterator[int]:
    with subprocess.Popen(["sleep", "infinity"], pass_fds=[fd], user=user, group=user) as process:
        try:
            yield process.pid
        finally:
            process.kill()


_BY_ANOTHER_MOUNT = """
mount --bind "$1" "$2" && exec 9<"$2/$3" && exec setpriv --reuid=65534 --clear-groups sleep infinity
"""


@contextlib.contextmanager
def holding_by_another_mount(file: Path, mount: Path) -> Iterator[int]:
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", _BY_ANOTHER_MOUNT, "sh", str(file.parent), str(mount), file.name]
    ) as process:
        try:
            while Path(f"/proc/{process.pid}").stat().st_uid != _NOBODY:
                assert process.poll() is None
                time.sleep(0.01)
            yield process.pid
        finally:
            process.kill()


def memfd() -> int:
    return os.memfd_create("guest", os.MFD_CLOEXEC)


def file_on_tmpfs() -> int:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        return os.dup(file.fileno())


@pytest.mark.parametrize("user", [0, _NOBODY])
@pytest.mark.parametrize("make", [memfd, file_on_tmpfs])
def test_a_file_that_looks_like_guest_memory(make, user: int, tmp_path: Path) -> None:
    """user: of whom has it. Another user's fds can only be fetched, and then are closed."""
    if reason := FuseFile.missing():
        pytest.skip(reason)
    memory = make()
    try:
        with (
            looking(memory, as_in_the_unit=True) as look,
            holding(memory, user) as holder,
            FuseFile(tmp_path, os.fstat(memory).st_ino) as file,
            holding(file.fd, user) as stranger,
        ):
            file.silence()
            try:
                found, _ = look.communicate("\n", timeout=60)
            finally:  # or nobody could end the look
                file.end()
            assert look.returncode == 0
            assert f"{holder}:{memory}" in found.split()
            assert f"{stranger}:" not in found
            assert file.requests_so_far() == []
    finally:
        os.close(memory)


def test_another_users_file_that_was_opened_by_another_mount(tmp_path: Path) -> None:
    with (
        tempfile.NamedTemporaryFile(dir="/dev/shm") as memory,
        looking(memory.fileno(), as_in_the_unit=True) as look,
        holding_by_another_mount(Path(memory.name), tmp_path) as holder,
    ):
        found, _ = look.communicate("\n", timeout=60)
        assert f"{holder}:9" in found.split()
