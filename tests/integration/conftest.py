# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests with a monitor as a program share."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bus import PrivateBus


@pytest.fixture(scope="module")
def bus() -> Iterator[PrivateBus]:
    with PrivateBus() as private:
        yield private


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short, because a socket's path has 107 bytes at most."""
    path = Path(tempfile.mkdtemp(prefix="vmmswap-"))
    yield path
    end_s = time.monotonic() + 10
    while path.exists():  # a killed monitor's successor may come and go in there
        shutil.rmtree(path, ignore_errors=time.monotonic() < end_s)


@pytest.fixture
def vfio_device() -> Iterator[str]:
    """A file by the name of a VFIO group: what counts is what a process has open."""
    directory = Path("/dev/vfio")
    was_there = directory.exists()
    while True:
        directory.mkdir(exist_ok=True)
        try:
            device = tempfile.NamedTemporaryFile(dir=directory, prefix="vmmswap-test-")  # noqa: SIM115
        except FileNotFoundError:  # another run has just removed the directory
            continue
        break
    with device:
        yield device.name
    if not was_there:
        with contextlib.suppress(OSError):  # another run has one there
            directory.rmdir()
