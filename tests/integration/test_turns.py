# SPDX-License-Identifier: GPL-2.0-or-later
"""As many swap-outs run on a host as SwapOutsMax= says. The others wait, and hold up nothing else."""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path

import pytest

from tests.support.bus import missing
from tests.support.guest import Guest
from tests.support.monitor import BusError, Monitor
from tests.support.restarts import on_its_own

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

QUEUED = {"State": "InProgress", "Operation": "swap-out", "Queued": True}
NOT_QUEUED = {"State": "Ready", "Operation": "", "Queued": False}


@pytest.fixture
def turns(directory):
    """The directory that the monitors of this test share, for one swap-out at a time."""
    shared = directory / "turns"
    shared.mkdir()
    (directory / "one.conf").write_text("[Swap]\nSwapOutsMax=1\n")
    return shared


@contextlib.contextmanager
def taken(turns):
    """As by a monitor of another VM that swaps out."""
    with (turns / "0").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def vm(name, bus, turns, env=None):
    """A monitor with a guest whose memory is in use."""
    directory = turns.parent / name
    directory.mkdir()
    env = {"RUNTIME_DIRECTORY": str(turns), **(env or {})}
    options = ("--config", str(turns.parent / "one.conf"))
    with (
        Monitor(name, bus, directory, *options, env=env) as monitor,
        Guest(regions=["4M"], socket=monitor.socket) as guest,
    ):
        guest.wait_ready()
        guest.fill()
        yield monitor, guest


def shown(monitor):
    status = monitor.status()
    return {key: status[key] for key in QUEUED}


def test_a_swap_out_waits_for_its_turn_and_can_be_cancelled(bus, turns):
    with vm("web", bus, turns) as (monitor, guest):
        with taken(turns):
            monitor.call("Enable")
            monitor.call("Enable")
            assert shown(monitor) == QUEUED
            assert guest.verify().wrong_bytes == 0
            monitor.call("Disable")
            assert shown(monitor) == NOT_QUEUED
            monitor.call("Enable")
            assert shown(monitor) == QUEUED
        status = monitor.settled()
        assert (status["State"], status["Queued"]) == ("Active", False)
        with taken(turns):  # it was released, and what brings memory back never waits for it
            guest.touch(0, 16)
            assert monitor.disable()["State"] == "Ready"
        assert guest.verify().wrong_bytes == 0


def test_a_monitor_that_is_killed_makes_room_and_its_own_swap_out_is_resumed(bus, turns):
    stops = {"VMMSWAP_ENGINE": "failpoints", "VMMSWAP_FAILPOINTS": "evict.protected=stop"}
    with vm("first", bus, turns, stops) as (first, guest), vm("second", bus, turns) as (second, other):
        first.call("Enable")
        first.until(lambda: state_of(first.pid) == "T", "the monitor to stop in its swap-out")
        second.call("Enable")
        assert shown(second) == QUEUED
        first._kill_keepers()
        first.kill()
        assert second.settled()["State"] == "Active"
        assert other.verify().wrong_bytes == 0
        guest.kill()


def test_an_order_that_waits_outlives_its_monitor(bus, turns):
    env = {"RUNTIME_DIRECTORY": str(turns)}
    with on_its_own(bus, env, "--config", str(turns.parent / "one.conf")) as monitor:
        monitor.wait_on_bus()
        with Guest(regions=["4M"], socket=monitor.socket) as guest:
            guest.wait_ready()
            guest.fill()
            with taken(turns):
                monitor.call("Enable")
                assert shown(monitor) == QUEUED
                monitor.kill()
                monitor.until(lambda: is_queued_again(monitor), "the successor to wait, too")
            assert monitor.settled()["State"] == "Active"
            assert guest.verify().wrong_bytes == 0


def is_queued_again(monitor):
    try:
        return shown(monitor) == QUEUED
    except BusError:  # it is not there yet
        return False


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
