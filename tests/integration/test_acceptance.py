# SPDX-License-Identifier: GPL-2.0-or-later
"""Two large promises, with the program itself: many rounds under load, and a gibibyte that really leaves."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.support.bus import PrivateBus, missing
from tests.support.guest import Guest
from tests.support.monitor import Monitor

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

ROUNDS = 10
GIB = 1 << 30


@pytest.fixture
def monitor():
    directory = Path(tempfile.mkdtemp(prefix="vmmswap-", dir="/var/tmp"))  # a disk, where /tmp may be RAM
    with PrivateBus() as bus, Monitor("big", bus, directory) as running:
        yield running
    shutil.rmtree(directory)


def test_two_regions_three_processes_ten_rounds_with_writers_running(monitor):
    with Guest(("48M", "16M"), socket=monitor.socket) as guest:
        guest.wait_ready()
        guest.fill()
        guest.fork(2)
        guest.work_start(rate=3000)
        for _ in range(ROUNDS):
            assert monitor.enable()["State"] == "Active"
            guest.wait_work(300)
            assert monitor.disable()["State"] == "Ready"
            guest.wait_work(300)
        guest.work_stop()
        assert monitor.status()["Processes"] == 3
        done = guest.verify()
        assert (done.wrong_bytes, done.lost_processes) == (0, 0)
        assert done.bytes >= 3 * (64 << 20)


def test_a_gibibyte_leaves_and_comes_back_by_the_kernels_count(monitor):
    with Guest(("1G",), socket=monitor.socket, mix="random=100") as guest:
        guest.wait_ready()
        guest.fill()
        before = guest.memory().resident_bytes
        assert before == GIB
        assert monitor.enable()["State"] == "Active"
        assert guest.memory().resident_bytes < GIB // 100
        assert monitor.disable()["State"] == "Ready"
        assert guest.memory().resident_bytes == GIB
        done = guest.verify()
        assert (done.wrong_bytes, done.lost_processes) == (0, 0)
        assert done.bytes >= GIB
