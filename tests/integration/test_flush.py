# SPDX-License-Identifier: GPL-2.0-or-later
"""Flush: all that is out and on RAM moves to disk, under a guest that checks its bytes."""

import time

import pytest

from tests.support.bus import PrivateBus, missing
from tests.support.guest import Guest
from tests.support.monitor import PLAIN
from tests.support.restarts import failing, restarted
from vmmswap.monitor import ledger
from vmmswap.monitor.ledger import Ledger

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

MIB = 1 << 20


@pytest.fixture
def monitors(tmp_path):
    """Monitors with these lines of configuration; a ledger says that 1 MiB was written in this hour."""
    ledger.write(tmp_path / "web.written", Ledger({int(time.time()) // 3600: MIB}).to_text())

    def make(bus, *lines):
        file = tmp_path / "vmmswap.conf"
        file.write_text("\n".join(["[Swap]", *lines, ""]))
        return restarted(bus, "--config", str(file))

    make.env = {"STATE_DIRECTORY": str(tmp_path)}
    return make


def on_disk(monitor):
    """Until nothing is on RAM; the status then."""
    monitor.until(lambda: monitor.status()["StoredRamBytes"] == 0, "all to be on disk")
    return monitor.settled()


def test_a_flush_moves_all_to_disk_though_it_is_killed(monitors):
    with PrivateBus() as bus, monitors(bus, "RamTierMax=100%") as service:
        monitor = service.start(monitors.env | failing("flush.moved=kill@1"))
        monitor.wait_on_bus()
        with Guest(("24M",), socket=monitor.socket) as guest:
            guest.wait_ready()
            guest.fill()
            monitor.call("Flush")  # nothing is out: nothing to do
            assert monitor.settled()["State"] == "Ready"
            assert monitor.enable()["StoredRamBytes"] > 0
            monitor.call("Flush")
            assert service.await_death()
            monitor = service.start(monitors.env)
            monitor.wait_on_bus()
            assert monitor.settled()["State"] == "Active"
            assert guest.verify().wrong_bytes == 0
            assert monitor.enable()["State"] == "Active"
            monitor.call("Flush")
            status = on_disk(monitor)
            assert (status["State"], status["LimitedBy"], status["Error"]) == ("Active", "", "")
            assert status["StoredDiskBytes"] > 0
            assert guest.verify().wrong_bytes == 0
            assert monitor.disable()["State"] == "Ready"


def test_a_flush_ends_with_the_budget_and_is_refused_without_one(monitors):
    lines = ("RamTierMax=100%", "RamTierCompression=none", "WriteBudgetPerDay=8M")
    with PrivateBus() as bus, monitors(bus, *lines) as service:
        monitor = service.start(monitors.env)
        monitor.wait_on_bus()
        with Guest(("24M",), socket=monitor.socket) as guest:
            guest.wait_ready()
            guest.fill()
            monitor.enable()
            monitor.call("Flush")
            monitor.until(lambda: monitor.settled()["LimitedBy"] == "write-budget", "the budget to end it")
            status = monitor.status()
            assert (status["State"], status["Error"]) == ("Active", "")
            assert 0 < status["WrittenBytes"] <= 7 * MIB
            assert status["StoredRamBytes"] > 0
            assert monitor.error_of("Flush") == "NoSpace"
            assert guest.verify().wrong_bytes == 0


@pytest.mark.parametrize(
    "lines", [PLAIN, ["RamTierMax=50%", "DiskTierMax=0"]], ids=["no RAM tier", "no disk tier"]
)
def test_a_flush_needs_both_tiers(monitors, lines):
    with PrivateBus() as bus, monitors(bus, *lines) as service:
        monitor = service.start(monitors.env)
        monitor.wait_on_bus()
        with Guest(("4M",), socket=monitor.socket) as guest:
            guest.wait_ready()
            assert monitor.error_of("Flush") == "NotSupported"
