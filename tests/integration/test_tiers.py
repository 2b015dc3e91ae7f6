# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM with RamTierMax=: its pages go to RAM, compressed, and on to disk; monitors are killed meanwhile."""

import pytest

from tests.support.bus import PrivateBus, missing
from tests.support.guest import Guest
from tests.support.restarts import failing, restarted

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

TIERS = {"store-segments", "store-ram"}
ON_DISK = {"store-disk", "store-key"}


@pytest.fixture
def config(tmp_path):
    def write(*lines):
        file = tmp_path / "vmmswap.conf"
        file.write_text("\n".join(["[Swap]", *lines, ""]))
        return file

    return write


def check_all_right(guest):
    done = guest.verify()
    assert (done.wrong_bytes, done.lost_processes) == (0, 0), done


@pytest.mark.parametrize("died_at", ["evict.stored", "evict.marked", "store.sealed", "store.written"])
def test_a_monitor_that_is_killed_leaves_its_tiers_to_its_successor(config, died_at):
    with PrivateBus() as bus, restarted(bus, "--config", str(config("RamTierMax=100%"))) as service:
        monitor = service.start(failing(f"{died_at}=kill@1"))
        monitor.wait_on_bus()
        with Guest(("16M",), socket=monitor.socket) as guest:
            guest.wait_ready()
            guest.fill()
            assert set(service.manager.kept) > TIERS | ON_DISK
            assert "store" not in service.manager.kept
            monitor.call("Enable")
            assert service.await_death(60)
            monitor = service.start()
            monitor.wait_on_bus()
            assert monitor.enable()["State"] == "Active"
            status = monitor.status()
            assert status["StoredRamBytes"] > 0
            assert status["SwapPages"] > 0
            check_all_right(guest)
            assert monitor.enable()["State"] == "Active"
            service.await_death(0)
            monitor = service.start()
            monitor.wait_on_bus()
            check_all_right(guest)
            assert monitor.disable()["State"] == "Ready"
            check_all_right(guest)


def test_without_a_disk_tier_there_need_be_no_swap_directory(config, tmp_path):
    lines = ("RamTierMax=100%", "DiskTierMax=0")
    options = ("--config", str(config(*lines)), "--swap-dir", str(tmp_path / "absent"))
    with PrivateBus() as bus, restarted(bus, *options) as service:
        monitor = service.start({"STATE_DIRECTORY": str(tmp_path)})
        monitor.wait_on_bus()
        with Guest(("16M",), socket=monitor.socket) as guest:
            guest.wait_ready()
            guest.fill()
            status = monitor.enable()
            assert (status["State"], status["StoredDiskBytes"]) == ("Active", 0)
            assert status["SwapPages"] > 0
            check_all_right(guest)


def test_with_no_ram_allowed_all_goes_to_disk_and_comes_back_from_there(config):
    with PrivateBus() as bus, restarted(bus, "--config", str(config("RamTierMax=0"))) as service:
        monitor = service.start()
        monitor.wait_on_bus()
        with Guest(("16M",), socket=monitor.socket) as guest:
            guest.wait_ready()
            guest.fill()
            assert monitor.enable()["State"] == "Active"
            monitor.until(lambda: monitor.status()["StoredRamBytes"] == 0, "all to move to disk")
            status = monitor.status()
            assert status["StoredDiskBytes"] > 0
            assert status["WrittenBytes"] > 0
            service.await_death(0)
            monitor = service.start()
            monitor.wait_on_bus()
            check_all_right(guest)
            assert monitor.disable()["State"] == "Ready"
            check_all_right(guest)


def test_without_a_disk_tier_a_full_ram_tier_leaves_the_rest_resident(config):
    options = config("RamTierMax=8M", "DiskTierMax=0", "RamTierCompression=none")
    with PrivateBus() as bus, restarted(bus, "--config", str(options)) as service:
        monitor = service.start()
        monitor.wait_on_bus()
        with Guest(("64M",), socket=monitor.socket) as guest:
            guest.wait_ready()
            guest.fill()
            assert not ON_DISK & set(service.manager.kept)
            status = monitor.enable()
            assert (status["State"], status["LimitedBy"], status["Error"]) == ("Active", "ram-tier", "")
            assert 0 < status["StoredRamBytes"] <= 8 << 20
            assert status["ResidentPages"] > 0
            service.await_death(0)
            monitor = service.start()
            monitor.wait_on_bus()
            assert monitor.status()["LimitedBy"] == "ram-tier"  # its successor knows
            check_all_right(guest)
            assert monitor.disable()["State"] == "Ready"
            check_all_right(guest)
