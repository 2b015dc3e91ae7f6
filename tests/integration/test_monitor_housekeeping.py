# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of the store when a guest wakes by its page faults alone, without Disable or Trim."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.support.bus import PrivateBus, missing
from tests.support.guest import Guest
from tests.support.monitor import Monitor

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

PAGES = 24 * 256


@pytest.fixture
def monitor():
    directory = Path(tempfile.mkdtemp(prefix="vmmswap-"))
    with PrivateBus() as bus, Monitor("web", bus, directory) as running:
        yield running
    shutil.rmtree(directory)


@pytest.fixture
def guest(monitor):
    with Guest(("16M", "8M"), socket=monitor.socket) as running:
        running.wait_ready()
        running.fill()
        yield running


def test_disk_space_comes_back_as_a_guest_writes(monitor, guest):
    status = monitor.enable()
    assert status["StoredDiskBytes"] >= status["SwapPages"] * 4096 > PAGES // 2 * 4096
    guest.fill()
    monitor.until(lambda: monitor.status()["SwapPages"] == 0, "the last page to be counted")
    monitor.until(lambda: monitor.status()["StoredDiskBytes"] < 1 << 16, "the disk space")
    status = monitor.status()
    assert (status["State"], status["SwapPages"], status["KeptPages"]) == ("Active", 0, 0)
    assert guest.verify().wrong_bytes == 0
    assert monitor.enable()["SwapPages"] > PAGES // 2
    assert guest.verify().wrong_bytes == 0


def test_pages_that_were_only_read_keep_their_copies(monitor, guest):
    out = monitor.all_out()
    assert out["KeptPages"] == 0
    assert guest.verify().wrong_bytes == 0
    monitor.until(lambda: monitor.status()["KeptPages"] == out["SwapPages"], "the last page to be counted")
    status = monitor.status()
    assert status["SwapPages"] == 0
    assert status["ResidentPages"] >= status["KeptPages"]
    assert status["StoredBytes"] >= status["KeptPages"] * 4096
    again = monitor.all_out()
    assert (again["SwapPages"], again["KeptPages"]) == (out["SwapPages"], 0)
    assert again["WrittenBytes"] == out["WrittenBytes"], "they went out without being written again"
    assert guest.verify().wrong_bytes == 0
    ready = monitor.disable()
    assert (ready["KeptPages"], ready["StoredDiskBytes"]) == (0, 0)
