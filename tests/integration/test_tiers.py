# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM's pages go to RAM, compressed, and on to disk, or to a plain file; monitors are killed meanwhile."""

import os
from dataclasses import replace

import pytest

from tests.support.bus import PrivateBus, missing
from tests.support.guest import Guest, GuestError
from tests.support.monitor import PLAIN
from tests.support.notify import ServiceManager
from tests.support.restarts import failing, restarted
from vmmswap.monitor.keep.manifest import ManifestFile

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
            assert service.await_death()
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


def test_by_default_a_quarter_goes_to_ram_compressed_and_the_rest_to_disk_encrypted(config):
    with PrivateBus() as bus, restarted(bus, "--config", str(config())) as service:
        monitor = service.start()
        monitor.wait_on_bus()
        with Guest(("64M",), socket=monitor.socket, mix="random=50,text=50") as guest:
            guest.wait_ready()
            guest.fill()
            before = guest.memory().resident_bytes
            assert set(service.manager.kept) > TIERS | ON_DISK
            assert monitor.enable()["State"] == "Active"
            monitor.until(lambda: monitor.status()["StoredRamBytes"] <= 16 << 20, "the limit of RAM to hold")
            status = monitor.status()
            assert min(status["StoredRamBytes"], status["StoredDiskBytes"], status["RawPages"]) > 0
            assert status["StoredPages"] == status["SwapPages"]
            freed = before - guest.memory().resident_bytes - status["StoredRamBytes"]
            assert 0 < status["NetFreedBytes"] <= freed
            check_all_right(guest)
            assert monitor.disable()["NetFreedBytes"] == 0


def write_as_version_0_1(manifest_fd):
    """The record of a VM that registered when there were no tiers, and so neither their settings."""
    file = ManifestFile(os.dup(manifest_fd))
    found = file.read()
    of_tiers = ("ram_", "disk_tier_compression", "encryption", "write_budget", "wake_")
    for name in [name for name in found.config if name.startswith(of_tiers)]:
        del found.config[name]
    file.write(replace(found, resident_before=0, tables_before=0))
    file.close()


def test_what_is_out_in_a_plain_file_stays_served_from_there_when_the_default_is_tiers(config):
    """As at an upgrade: a successor with tiers by default takes over, first in a swap-out."""
    options = config(*PLAIN)
    with PrivateBus() as bus, restarted(bus, "--config", str(options)) as service:
        monitor = service.start(failing("evict.marked=kill@1"))
        monitor.wait_on_bus()
        with Guest(("16M",), socket=monitor.socket) as guest:
            guest.wait_ready()
            guest.fill()
            assert "store" in service.manager.kept and not TIERS & set(service.manager.kept)
            assert monitor.error_of("Flush") == "NotSupported"
            monitor.call("Enable")
            assert service.await_death()
            write_as_version_0_1(service.manager.kept["manifest"])
            options.write_text("")
            for _ in range(2):
                monitor = service.start()
                monitor.wait_on_bus()
                status = monitor.all_out()
                assert status["StoredDiskBytes"] >= status["SwapPages"] * 4096 > 0
                assert (status["StoredRamBytes"], status["CompressedBytes"]) == (0, 0)
                assert status["StoredPages"] == status["SwapPages"]
                assert not TIERS & set(service.manager.kept)
                check_all_right(guest)
                assert monitor.enable()["State"] == "Active"
                service.await_death(0)
            monitor = service.start()
            monitor.wait_on_bus()
            check_all_right(guest)
            assert monitor.disable()["State"] == "Ready"
            check_all_right(guest)


@pytest.fixture
def no_room_in_the_fd_store(monkeypatch):
    monkeypatch.setattr(ServiceManager, "room", 8)


@pytest.mark.usefixtures("no_room_in_the_fd_store")  # before the manager is made
def test_a_vm_whose_store_a_successor_would_not_have_is_refused(config):
    with PrivateBus() as bus, restarted(bus, "--config", str(config())) as service:
        monitor = service.start()
        monitor.wait_on_bus()
        with Guest(("16M",), socket=monitor.socket) as guest:
            with pytest.raises(GuestError, match=r"cannot be kept .* systemd keeps 8 fds"):
                guest.wait_ready()
            monitor.until(lambda: not service.manager.kept, "all to be taken out again")
        service.manager.room = 4096
        service.await_death(0)
        monitor = service.start()
        monitor.wait_on_bus()
        with Guest(("16M",), socket=monitor.socket) as guest:
            guest.wait_ready()


def test_what_encryption_lacks_is_said_once(config):
    """AES instructions are hidden from libcrypto; the kernel refuses the memory for the key."""
    slow = {"OPENSSL_ia32cap": "~0x200000200000000"}
    notes = ("no AES instructions", "no memfd_secret(2)")
    with PrivateBus() as bus, restarted(bus, "--config", str(config("RamTierMax=0"))) as service:
        monitor = service.start(failing("seal.secret=ENOSYS") | slow)
        monitor.wait_on_bus()
        with Guest(("16M",), socket=monitor.socket) as guest:
            guest.wait_ready()
            guest.fill()
            assert monitor.enable()["State"] == "Active"
            monitor.until(lambda: monitor.status()["StoredRamBytes"] == 0, "all to move to disk")
            service.await_death(0)
            monitor = service.start(slow)
            monitor.wait_on_bus()
            check_all_right(guest)
            assert monitor.disable()["State"] == "Ready"
            check_all_right(guest)
            assert [monitor.log.count(note) for note in notes] == [1, 1]


@pytest.mark.parametrize("lines", [(), ("Encryption=no",), PLAIN])
def test_nothing_is_said_where_nothing_is_lacking(config, lines):
    with PrivateBus() as bus, restarted(bus, "--config", str(config(*lines))) as service:
        monitor = service.start(failing("seal.secret=ENOSYS") if lines else {})
        monitor.wait_on_bus()
        with Guest(("4M",), socket=monitor.socket) as guest:
            guest.wait_ready()
            assert "AES" not in monitor.log
            assert "memfd_secret" not in monitor.log or not lines
