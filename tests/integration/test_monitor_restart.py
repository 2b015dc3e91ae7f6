# SPDX-License-Identifier: GPL-2.0-or-later
"""A monitor dies and its successor goes on: killed in each state, told to restart, with forks and load."""

import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path

import pytest

from tests.support.bus import missing
from tests.support.guest import Guest
from tests.support.monitor import PROGRAM, BusError, Monitor
from tests.support.notify import ServiceManager
from tests.support.restarts import wait_gone
from vmmswap.monitor.keep import fdstore

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

REGIONS = ("16M", "8M")
PAGES = 24 * 256


class Service:
    """A monitor that is started again with what it stored."""

    def __init__(self, bus, directory, manager, listener):
        self.bus = bus
        self.directory = directory
        self.manager = manager
        self.listener = listener
        self.options = ()

    def start(self, *, wait=True, env=None):
        program, fds = self.manager.program(*PROGRAM, listener=self.listener)
        self.monitor = Monitor(
            "web",
            self.bus,
            self.directory,
            *self.options,
            program=program,
            env=self.manager.environment | (env or {}),
            listen=False,
            pass_fds=fds,
        )
        self.monitor.start()
        if wait:
            self.monitor.wait_on_bus()
        return self.monitor

    def kill_and_start(self):
        self.monitor.kill()
        return self.start()


@pytest.fixture
def service(bus):
    directory = Path(tempfile.mkdtemp(prefix="vmmswap-"))
    with ServiceManager(directory) as manager, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
        listener.listen()
        running = Service(bus, directory, manager, listener)
        running.start()
        yield running
        running.monitor.kill()
    shutil.rmtree(directory)


@pytest.fixture
def guest(service):
    with Guest(REGIONS, socket=service.monitor.socket) as running:
        running.wait_ready()
        running.fill()
        yield running


def check_all_right(guest):
    done = guest.verify()
    assert (done.wrong_bytes, done.lost_processes) == (0, 0), done
    assert done.bytes >= PAGES * 4096


def test_what_is_kept_is_what_a_successor_needs_and_nothing_stays_behind(service, guest):
    names = {
        "manifest",
        "page-map",
        *fdstore.TIERS,
        "wake-record",
        "connection",
        "memfd-0",
        "memfd-1",
        "uffd-0",
        "pidfd-0",
    }
    assert set(service.manager.kept) == names
    (child,) = guest.fork(1)
    service.manager.wait_line("FDNAME=pidfd-1")
    assert set(service.manager.kept) == names | {"uffd-1", "pidfd-1"}
    guest.kill_device(child)
    service.manager.wait_line("FDSTOREREMOVE=1")
    service.monitor.until(lambda: set(service.manager.kept) == names, "the child's fds to go")
    service.monitor.call("Exit")
    assert service.monitor.wait_exit() == 0
    service.monitor.until(lambda: not service.manager.kept, "the store to be empty")
    check_all_right(guest)


@pytest.fixture
def room_for_one_child(monkeypatch):
    """Beside what every VM needs, and the reserve for memory."""
    monkeypatch.setattr(ServiceManager, "room", 12 + 2 + fdstore._RESERVE)


@pytest.mark.usefixtures("room_for_one_child")  # before the others
def test_a_child_that_cannot_be_kept_keeps_memory_in(service, guest):
    """It would read zeros if the monitor died. It is kept as soon as there is room."""
    (first,) = guest.fork(1)
    service.manager.wait_line("FDNAME=pidfd-1")
    guest.fork(1)
    service.monitor.until(
        lambda: "systemd keeps no more fds" in error_of(service.monitor, "Enable"), "Enable to be refused"
    )
    guest.kill_device(first)
    service.manager.wait_line("FDNAME=uffd-2")
    assert service.monitor.enable()["State"] == "Active"
    check_all_right(guest)


def error_of(monitor, method):
    try:
        monitor.call(method)
    except BusError as error:
        return str(error)
    return ""


def test_killed_with_memory_out(service, guest):
    guest.fork(1)
    service.manager.wait_line("FDNAME=pidfd-1")
    out = service.monitor.enable()["SwapPages"]
    monitor = service.kill_and_start()
    status = monitor.status()
    assert (status["State"], status["Restarts"], status["Processes"]) == ("Active", 1, 2)
    assert status["SwapPages"] == out
    check_all_right(guest)
    monitor = service.kill_and_start()
    assert monitor.status()["Restarts"] == 2
    assert monitor.disable()["State"] == "Ready"
    check_all_right(guest)
    assert "taken over from a monitor that ended" in monitor.log


def test_killed_with_nothing_out(service, guest):
    monitor = service.kill_and_start()
    assert monitor.status()["State"] == "Ready"
    assert monitor.enable()["State"] == "Active"
    check_all_right(guest)


def test_lost_pages_are_remembered(service, guest):
    guest.touch(5, 1, write=True)  # a page of zeros is nowhere in the store
    service.monitor.all_out()
    guest.write_from_outside([5])
    guest.touch(5, 1, write=True)
    service.monitor.until(lambda: service.monitor.status()["LostPages"] == 1, "the page to be counted")
    status = service.kill_and_start().status()
    assert (status["LostPages"], status["State"], status["Restarts"]) == (1, "Failed", 1)
    assert status["ErrorName"] == "org.vmmswap.Error.PagesLost"


def test_a_fault_waits_for_the_successor(service, guest):
    service.monitor.enable()
    service.monitor.kill()
    job = guest.start("touch 0 100 read by=main")
    service.start()
    assert job.wait().wrong_bytes == 0


@pytest.mark.parametrize("order", ["Enable", "Disable"])
def test_killed_again_and_again_in_an_operation_under_load(service, guest, order):
    guest.fork(1)
    service.manager.wait_line("FDNAME=pidfd-1")
    guest.work_start(rate=300)
    monitor = service.monitor
    if order == "Disable":
        monitor.enable()
    for _ in range(2):
        monitor.call(order)
        monitor = service.kill_and_start()
    state = "Active" if order == "Enable" else "Ready"
    monitor.until(lambda: monitor.settled()["State"] == state, f"State {state}")
    guest.work_stop()
    status = guest.status()
    assert (status.wrong_bytes, status.bus_errors) == (0, 0)
    check_all_right(guest)


def test_told_to_restart_memory_stays_out(service, guest):
    service.monitor.enable()
    service.monitor.process.send_signal(signal.SIGUSR2)
    assert service.monitor.wait_exit() == 75
    assert guest.memory().resident_bytes < PAGES * 4096 // 100
    monitor = service.start()
    status = monitor.status()
    assert (status["State"], status["Restarts"]) == ("Active", 1)
    check_all_right(guest)


def test_told_to_stop_memory_comes_back_and_the_stop_is_given_time(service, guest):
    service.monitor.enable()
    service.monitor.process.send_signal(signal.SIGTERM)
    service.manager.wait_line("EXTEND_TIMEOUT_USEC=")
    assert service.monitor.wait_exit() == 0
    service.monitor.until(lambda: not service.manager.kept, "the store to be empty")
    check_all_right(guest)


@pytest.fixture
def recovering(service, guest):  # noqa: ARG001 - it has handed its memory over
    """A successor that has not taken over yet; it goes on once the path exists."""
    service.monitor.enable()
    service.monitor.kill()
    go = service.directory / "go"
    service.manager.forget_lines()
    env = {"WATCHDOG_USEC": "300000", "VMMSWAP_PYTHON_FAILPOINTS": f"recovery.pages=until:{go}"}
    service.start(wait=False, env=env)
    service.manager.wait_lines("WATCHDOG=1", 3)  # its event loop runs
    service.manager.wait_line("EXTEND_TIMEOUT_USEC=")
    assert not any("READY=1" in line for line in service.manager.lines)
    return go


def test_told_to_stop_while_it_takes_over(service, guest, recovering):
    """The stop waits until the VM is served, and brings all of its memory in."""
    service.manager.forget_lines()
    service.monitor.process.send_signal(signal.SIGTERM)
    service.manager.wait_lines("EXTEND_TIMEOUT_USEC=", 2)
    assert service.monitor.process.poll() is None
    recovering.touch()
    assert service.monitor.wait_exit() == 0
    service.monitor.until(lambda: not service.manager.kept, "the store to be empty")
    check_all_right(guest)


def test_told_to_restart_while_it_takes_over(service, guest, recovering):
    service.monitor.process.send_signal(signal.SIGUSR2)
    recovering.touch()
    assert service.monitor.wait_exit() == 75
    status = service.start().status()
    assert (status["State"], status["Restarts"]) == ("Active", 2)
    check_all_right(guest)


@pytest.mark.usefixtures("recovering")
def test_killed_while_it_takes_over(service, guest):
    monitor = service.kill_and_start()
    assert (monitor.status()["State"], monitor.status()["Restarts"]) == ("Active", 1)
    check_all_right(guest)


def test_the_connection_goes_on_with_the_successor(service, guest):
    monitor = service.kill_and_start()
    guest.backend(1)
    assert monitor.status()["Processes"] == 2
    monitor = service.kill_and_start()
    assert monitor.status()["Processes"] == 2
    monitor.enable()
    guest.disconnect()
    assert monitor.wait_exit() == 0
    check_all_right(guest)


@pytest.mark.parametrize("active", [False, True])
def test_the_vmm_dies_while_there_is_no_monitor(service, guest, active):
    if active:
        service.monitor.enable()
    service.monitor.kill()
    guest.kill()
    service.manager.forget_lines()
    service.start(wait=False)
    assert service.monitor.wait_exit() == 0
    service.manager.wait_line("READY=1")
    service.monitor.until(lambda: not service.manager.kept, "the store to be empty")


def test_the_connection_ends_while_there_is_no_monitor(service, guest):
    service.monitor.enable()
    service.monitor.kill()
    guest.disconnect()
    service.start(wait=False)
    assert service.monitor.wait_exit() == 0
    check_all_right(guest)


def test_bad_configuration_with_memory_out_means_the_last_good_one(service, guest):
    good = service.directory / "good.conf"
    good.write_text("[Swap]\nMaxPasses=2\n")
    service.options = ("--config", str(good))
    service.kill_and_start()
    service.monitor.enable()
    good.write_text("[Swap]\nColour=red\n")
    monitor = service.kill_and_start()
    assert monitor.status()["State"] == "Active"
    assert "'Colour' is not a key; " in monitor.log
    assert "using the last good configuration" in monitor.log
    check_all_right(guest)


def test_page_fault_logging_goes_on(service, guest):
    service.monitor.all_out()
    service.monitor.call("StartPageFaultLogging")
    monitor = service.kill_and_start()
    assert monitor.status()["PageFaultLogging"] is True
    guest.touch(0, 20)
    monitor.call("StopPageFaultLogging")
    assert len((service.directory / "page_fault.log").read_text().splitlines()) >= 21


def test_what_a_dead_registration_left_is_thrown_away(bus):
    directory = Path(tempfile.mkdtemp(prefix="vmmswap-"))
    with ServiceManager(directory) as manager, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
        listener.listen()
        manager.kept["memfd-0"] = os.memfd_create("left behind", os.MFD_CLOEXEC)
        service = Service(bus, directory, manager, listener)
        service.start()
        service.monitor.until(lambda: not manager.kept, "the store to be empty")
        service.monitor.call("Exit")
        assert service.monitor.wait_exit() == 0
    shutil.rmtree(directory)


def test_the_watchdog_is_fed(service):
    service.monitor.kill()
    service.start(env={"WATCHDOG_USEC": "300000"})
    service.manager.wait_line("WATCHDOG=1")
    service.manager.wait_line("STATUS=waiting for a VMM")


# A service manager that stands still


def out_with_a_child(service, guest):
    monitor = service.monitor
    assert monitor.enable()["State"] == "Active"
    guest.fork(1)
    monitor.wait_log("forked by the VM")


def test_a_service_manager_that_stands_still_holds_up_nothing(service, guest):
    with service.manager.standing_still():
        out_with_a_child(service, guest)
        check_all_right(guest)
        assert service.monitor.disable()["State"] == "Ready"
        assert service.monitor.enable()["State"] == "Active"
    service.manager.wait_line("FDNAME=pidfd-1")
    service.manager.wait_line("STATUS=Active")
    monitor = service.kill_and_start()
    assert (monitor.status()["State"], monitor.status()["Processes"]) == ("Active", 2)
    check_all_right(guest)


def test_what_could_not_be_sent_is_not_lost_with_the_monitor(service, guest):
    with service.manager.standing_still():
        out_with_a_child(service, guest)
        pid = service.monitor.pid
        (keeper,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        service.monitor.kill()
    wait_gone(keeper)
    assert {"uffd-1", "pidfd-1"} <= service.manager.kept.keys()
    monitor = service.start()
    assert (monitor.status()["State"], monitor.status()["Processes"]) == ("Active", 2)
    check_all_right(guest)
