# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor killed when it has read a FORK event and told nobody of the child: its keeper has the fd."""

import os
import signal
import time

import pytest

from tests.support.bus import PrivateBus, missing
from tests.support.firecracker import Firecracker, make_snapshot, sum_of
from tests.support.guest import Guest
from tests.support.monitor import DEADLINE_S, BusError
from tests.support.restarts import failing, is_alive, keepers, on_its_own, restarted

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

REGIONS = ("8M", "4M")
GAP = "fault.fork-read=kill"


@pytest.fixture(scope="module")
def bus():
    with PrivateBus() as private:
        yield private


def wait_on_bus_again(monitor):
    """After a life that its keeper began: the process that the test started has ended."""

    def answers():
        try:
            return monitor.status()
        except BusError:
            return None

    monitor.until(answers, "the successor to be on the bus")


def filled(guest):
    guest.wait_ready()
    guest.fill()


def check_all_right(guest, processes):
    status = guest.status()
    assert (status.wrong_bytes, status.bus_errors, status.processes) == (0, 0, processes)
    done = guest.verify()
    assert (done.wrong_bytes, done.lost_processes) == (0, 0), done


def test_killed_in_the_gap_with_an_fd_store(bus):
    with restarted(bus) as service:
        monitor = service.start(failing(GAP))
        monitor.wait_on_bus()
        with Guest(REGIONS, socket=monitor.socket) as guest:
            filled(guest)
            assert monitor.enable()["State"] == "Active"
            guest.work_start()
            forking = guest.start("fork 1 by=main")
            assert service.await_death(), monitor.log
            assert [name for name in service.manager.kept if name.startswith("uffd-orphan-")]
            monitor = service.start()
            monitor.wait_on_bus()
            assert forking.wait().made
            guest.wait_work(500)
            assert monitor.status()["Processes"] == 2
            assert not [name for name in service.manager.kept if name.startswith("uffd-orphan-")]
            assert "uffd-1" in service.manager.kept
            monitor.enable()
            assert monitor.disable()["State"] == "Ready"
            guest.work_stop()
            check_all_right(guest, 2)


def test_killed_in_the_gap_with_nothing_out(bus):
    with restarted(bus) as service:
        monitor = service.start(failing(GAP))
        monitor.wait_on_bus()
        with Guest(REGIONS, socket=monitor.socket) as guest:
            filled(guest)
            forking = guest.start("fork 1 by=main")
            assert service.await_death(), monitor.log
            monitor = service.start()
            monitor.wait_on_bus()
            assert forking.wait().made
            assert monitor.status()["Processes"] == 2
            assert monitor.enable()["State"] == "Active"
            check_all_right(guest, 2)


def test_killed_in_the_gap_without_an_fd_store(bus):
    with on_its_own(bus, failing(GAP)) as monitor:
        monitor.wait_on_bus()
        with Guest(REGIONS, socket=monitor.socket) as guest:
            filled(guest)
            monitor.enable()
            guest.work_start()
            assert guest.fork(1)
            monitor.wait_log("taken over from a monitor that ended")
            wait_on_bus_again(monitor)
            guest.wait_work(500)
            status = monitor.status()
            assert (status["Restarts"], status["Processes"]) == (1, 2)
            assert monitor.disable()["State"] == "Ready"
            guest.work_stop()
            check_all_right(guest, 2)


def test_killed_again_and_again_without_an_fd_store(bus):
    with on_its_own(bus, {}) as monitor:
        monitor.wait_on_bus()
        with Guest(REGIONS, socket=monitor.socket) as guest:
            filled(guest)
            guest.fork(1)
            guest.work_start(rate=300)
            monitor.enable()
            for number in range(1, 4):
                os.kill([monitor.pid, *keepers(monitor)][number - 1], signal.SIGKILL)
                monitor.until(
                    lambda number=number: monitor.log.count("taken over from a monitor") == number,
                    f"life {number + 1}",
                )
                wait_on_bus_again(monitor)
                assert monitor.status()["Restarts"] == number
            assert monitor.disable()["State"] == "Ready"
            guest.work_stop()
            check_all_right(guest, 2)
            guest.disconnect()
            wait_until_all_ended(monitor)
            check_all_right(guest, 2)


def test_killed_while_a_firecracker_vm_registers_without_an_fd_store(bus, tmp_path):
    """It stands still where it reads its configuration anew, which is a pipe: it has the message then, and
    nothing else.
    """
    snapshot = make_snapshot(tmp_path / "memory", 256)
    config = tmp_path / "vmmswap.conf"
    os.mkfifo(config)
    settings = f"[VM web]\nSnapshotFile={tmp_path}/memory\n"
    with on_its_own(bus, {}, "--config", str(config)) as monitor:
        config.write_text(settings)
        monitor.wait_on_bus()
        with Firecracker(monitor.socket, [1]) as vmm:
            with config.open("w"):
                monitor.kill()
            monitor.until(lambda: len(keepers(monitor)) == 2, "the successor")
            config.write_text(settings)
            monitor.wait_log("handed its memory over: starting again")
            config.write_text(settings)
            assert vmm.sum(0, 256) == sum_of(snapshot)
            wait_on_bus_again(monitor)
            assert monitor.status()["State"] == "Active"


def test_a_keeper_leaves_with_its_monitor(bus):
    with on_its_own(bus, {}) as monitor:
        monitor.wait_on_bus()
        with Guest(REGIONS, socket=monitor.socket) as guest:
            filled(guest)
            monitor.enable()
            monitor.process.send_signal(signal.SIGTERM)
            assert monitor.wait_exit() == 0
            wait_until_all_ended(monitor)
            check_all_right(guest, 1)


def test_signals_to_the_whole_group_do_not_end_the_keeper(bus):
    with on_its_own(bus, {}) as monitor:
        monitor.wait_on_bus()
        (keeper,) = keepers(monitor)
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGABRT, signal.SIGHUP, signal.SIGINT):
            os.kill(keeper, number)
        monitor.status()
        assert is_alive(monitor, keeper)


def wait_until_all_ended(monitor):
    end = time.monotonic() + DEADLINE_S
    while living := [pid for pid in keepers(monitor) if is_alive(monitor, pid)]:
        assert time.monotonic() < end, living
        time.sleep(0.005)
