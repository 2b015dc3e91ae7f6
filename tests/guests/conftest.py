# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests with an unmodified QEMU share."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.guests import qemu
from tests.guests.attached import attaching
from tests.support.bus import PrivateBus


@pytest.fixture(scope="module")
def bus():
    if reason := qemu.prepared():
        pytest.fail(reason)
    with PrivateBus() as private:
        yield private


@pytest.fixture
def directory():
    """Short, because a socket's path has 107 bytes at most."""
    path = Path(tempfile.mkdtemp(prefix="vmmswap-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def service(bus, directory):
    with attaching(bus, directory) as running:
        yield running
