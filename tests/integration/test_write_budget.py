# SPDX-License-Identifier: GPL-2.0-or-later
"""WriteBudgetPerDay= and the ledger of bytes written, in monitors that are killed and started again."""

import os
import signal
import time

import pytest

from tests.support.bus import PrivateBus, missing
from tests.support.guest import Guest
from tests.support.monitor import PLAIN
from tests.support.restarts import restarted
from vmmswap.monitor import ledger
from vmmswap.monitor.ledger import Ledger

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

MIB = 1 << 20
GUEST = {"regions": ("24M",), "mix": "random=100"}


def write_config(directory, *lines):
    file = directory / "vmmswap.conf"
    file.write_text("\n".join(["[Swap]", *lines, ""]))
    return str(file)


def this_hour():
    return int(time.time()) // 3600


def swapped_out(monitor):
    """Enable, and the status once nothing runs."""
    status = monitor.enable()
    assert (status["State"], status["Error"]) == ("Active", "")
    return status


@pytest.mark.parametrize("tiers", [PLAIN, ["RamTierMax=8M"]], ids=["file", "tiers"])
def test_a_budget_stops_a_swap_out_and_a_successor_knows(tmp_path, tiers):
    book = tmp_path / "web.written"
    ledger.write(book, Ledger({this_hour(): 2 * MIB}).to_text())
    config = write_config(tmp_path, "WriteBudgetPerDay=10M", *tiers)
    with PrivateBus() as bus, restarted(bus, "--config", config) as service:
        env = {"STATE_DIRECTORY": str(tmp_path)}
        monitor = service.start(env)
        monitor.wait_on_bus()
        with Guest(GUEST["regions"], socket=monitor.socket, mix=GUEST["mix"]) as guest:
            guest.wait_ready()
            guest.fill()
            status = swapped_out(monitor)
            assert status["LimitedBy"] == "write-budget"
            assert 0 < status["WrittenBytes"] <= 8 * MIB
            assert status["WrittenTodayBytes"] == 2 * MIB + status["WrittenBytes"]
            assert status["ResidentPages"] > 0
            assert "WriteBudgetPerDay=" in monitor.log
            assert guest.verify().wrong_bytes == 0

            service.await_death(0)  # SIGKILL: whether it had saved the ledger or not
            monitor = service.start(env)
            monitor.wait_on_bus()
            again = swapped_out(monitor)
            assert again["LimitedBy"] == "write-budget"
            assert status["WrittenBytes"] <= again["WrittenBytes"] <= 8 * MIB
            assert again["WrittenTodayBytes"] == 2 * MIB + again["WrittenBytes"] <= 10 * MIB
            assert guest.verify().wrong_bytes == 0

            write_config(tmp_path, "WriteBudgetPerDay=1G", *tiers)
            os.kill(monitor.pid, signal.SIGHUP)
            monitor.until(lambda: swapped_out(monitor)["LimitedBy"] == "", "the larger budget to hold")
            today = monitor.status()["WrittenTodayBytes"]
            assert guest.verify().wrong_bytes == 0
        assert monitor.wait_exit() == 0
        assert ledger.read(book).written_today(this_hour()) >= today > 10 * MIB


def test_a_successor_writes_nothing_before_it_has_read_the_ledger(tmp_path):
    ledger.write(tmp_path / "web.written", Ledger({this_hour(): 10 * MIB}).to_text())
    config = write_config(tmp_path, "WriteBudgetPerDay=10M", "RamTierMax=64M")
    env = {"STATE_DIRECTORY": str(tmp_path)}
    going_on = tmp_path / "going-on"
    with PrivateBus() as bus, restarted(bus, "--config", config) as service:
        monitor = service.start(env)
        monitor.wait_on_bus()
        with Guest(GUEST["regions"], socket=monitor.socket, mix=GUEST["mix"]) as guest:
            guest.wait_ready()
            guest.fill()
            assert swapped_out(monitor)["StoredRamBytes"] > 0
            service.await_death(0)
            held = {"VMMSWAP_PYTHON_FAILPOINTS": f"recovery.served=until:{going_on}"}
            monitor = service.start(env | held | {"VMMSWAP_FAILPOINTS": "store.move.written=kill"})
            assert guest.verify().wrong_bytes == 0  # it serves, and its pages would rather be on disk
            going_on.touch()
            monitor.wait_on_bus()
            assert monitor.settled()["WrittenBytes"] == 0
        assert monitor.wait_exit() == 0


@pytest.mark.parametrize("content", [None, "damaged"])
def test_without_a_ledger_the_budget_counts_as_used_up(tmp_path, content):
    book = tmp_path / "web.written"
    if content is not None:
        book.write_text(content)
    config = write_config(tmp_path, "WriteBudgetPerDay=1G")
    with PrivateBus() as bus, restarted(bus, "--config", config) as service:
        monitor = service.start({"STATE_DIRECTORY": str(tmp_path)})
        monitor.wait_on_bus()
        with Guest(GUEST["regions"], socket=monitor.socket, mix=GUEST["mix"]) as guest:
            guest.wait_ready()
            guest.fill()
            status = swapped_out(monitor)
            assert (status["LimitedBy"], status["WrittenBytes"]) == ("write-budget", 0)
            assert status["WrittenTodayBytes"] >= 1 << 30
            assert monitor.log.count("counts as used up") == 1
            assert guest.verify().wrong_bytes == 0
        assert monitor.wait_exit() == 0
    assert ledger.read(book).written_today(this_hour()) >= 1 << 30


@pytest.mark.parametrize("step", ["ledger.half", "ledger.written", "ledger.replaced"])
def test_a_monitor_that_is_killed_while_it_writes_the_ledger_leaves_one(tmp_path, step):
    book = tmp_path / "web.written"
    ledger.write(book, Ledger({this_hour(): MIB}).to_text())
    config = write_config(tmp_path)
    with PrivateBus() as bus, restarted(bus, "--config", config) as service:
        env = {"STATE_DIRECTORY": str(tmp_path)}
        monitor = service.start(env | {"VMMSWAP_PYTHON_FAILPOINTS": f"{step}=kill"})
        monitor.wait_on_bus()
        with Guest(("8M",), socket=monitor.socket, mix="random=100") as guest:
            guest.wait_ready()
            guest.fill()
            monitor.call("Enable")
            assert service.await_death()
            assert ledger.read(book).written_today(this_hour()) >= MIB  # the old one, or the new one
            monitor = service.start(env)
            monitor.wait_on_bus()
            status = swapped_out(monitor)
            assert status["WrittenTodayBytes"] == MIB + status["WrittenBytes"] >= 9 * MIB
            assert guest.verify().wrong_bytes == 0
        assert monitor.wait_exit() == 0
    assert ledger.read(book).written_today(this_hour()) == MIB + status["WrittenBytes"]
