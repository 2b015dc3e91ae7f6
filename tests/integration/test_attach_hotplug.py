# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that an attached VMM maps and unmaps later, without a word to us."""

from __future__ import annotations

import select
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.guests.attached import Service
from tests.support import programs
from tests.support.bus import PrivateBus, missing
from tests.support.monitor import BusError
from tests.support.notify import ServiceManager

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

SOURCE = Path(programs.__file__).with_name("hotplug_target.c")
PIECE_PAGES = (16 << 20) // 4096
DEADLINE_S = 30.0


class Target:
    """The running hotplug_target.c. Leaving the `with` block kills it."""

    def __init__(self):
        self.process = subprocess.Popen(
            [str(programs.built(SOURCE))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid
        self._answer("ready")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def ask(self, *orders, answer="done"):
        for order in orders:
            self.process.stdin.write(order + "\n")
            self.process.stdin.flush()
            self._answer(answer)

    def check(self, *numbers):
        """Each byte of these pieces is what was written."""
        self.ask(*(f"check {number}" for number in numbers), answer="right")

    def _answer(self, expected):
        assert select.select([self.process.stdout], [], [], DEADLINE_S)[0], "the target stands still"
        assert self.process.stdout.readline().strip() == expected

    @property
    def links(self):
        return sorted(str(path.readlink()) for path in Path(f"/proc/{self.pid}/fd").iterdir())


@pytest.fixture(scope="module")
def bus():
    with PrivateBus() as private:
        yield private


@pytest.fixture
def directory():
    path = Path(tempfile.mkdtemp(prefix="vmmswap-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def service(bus, directory):
    with ServiceManager(directory) as manager, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
        listener.listen()
        running = Service(bus, directory, manager, listener)
        yield running
        running.monitor.kill()


@pytest.fixture
def target():
    with Target() as running:
        yield running


def memfds_of(pid):
    """Inodes of the guest memory that a process keeps open."""
    found = Path(f"/proc/{pid}/fd").iterdir()
    return {path.stat().st_ino for path in found if "memfd:guest" in str(path.readlink())}


def all_out(monitor, pieces):
    """Enable leaves nothing of so many pieces on RAM."""
    status = monitor.enable()
    assert (status["State"], status["Error"]) == ("Active", ""), monitor.log
    wanted = pieces * PIECE_PAGES
    assert (status["TotalPages"], status["SwapPages"], status["ResidentPages"]) == (wanted, wanted, 0)


def test_what_is_plugged_goes_out_and_comes_back(service, target):
    links = target.links
    service.attach(target.pid)
    all_out(service.monitor, 1)
    target.ask("plug 1")  # while the first piece is out
    all_out(service.monitor, 2)
    target.check(0, 1)
    assert service.monitor.disable()["State"] == "Ready"
    target.ask("plug 2")  # while all is in
    all_out(service.monitor, 3)
    service.detach()
    target.check(0, 1, 2)
    assert target.links == sorted([*links, *["/memfd:guest (deleted)"] * 2])


def test_what_is_unplugged_is_let_go(service, target):
    """Without an order: our own fd of it would keep its memory allocated."""
    target.ask("plug 1")
    service.attach(target.pid)
    monitor = service.monitor
    all_out(monitor, 2)
    monitor.disable()
    target.ask("unplug 0")
    monitor.until(lambda: monitor.status()["TotalPages"] == PIECE_PAGES, "the piece to be forgotten")
    assert memfds_of(monitor.process.pid) == memfds_of(target.pid)
    all_out(monitor, 1)
    target.check(1)
    target.ask("plug 0")
    all_out(monitor, 2)
    target.check(0, 1)


def test_what_is_unplugged_while_it_is_out(service, target):
    """It cannot be followed then: what is stored belongs to a file that somebody may map again."""
    target.ask("plug 1")
    service.attach(target.pid)
    all_out(service.monitor, 2)
    target.ask("unplug 1")
    with pytest.raises(BusError, match=r"no longer mapped there.*Call Disable, then Enable"):
        service.monitor.call("Enable")
    target.check(0)
    assert service.monitor.disable()["State"] == "Ready"
    all_out(service.monitor, 1)
    target.check(0)


def test_what_is_mapped_elsewhere(service, target):
    service.attach(target.pid)
    all_out(service.monitor, 1)
    service.monitor.disable()
    target.ask("move 0")
    all_out(service.monitor, 1)
    target.check(0)
    service.detach()
    target.check(0)


def test_what_is_mapped_twice_is_refused_until_it_is_not(service, target):
    service.attach(target.pid)
    target.ask("plug 1", "twice 1")
    for _ in range(2):
        with pytest.raises(BusError, match="maps guest memory twice"):
            service.monitor.call("Enable")
    assert service.monitor.status()["TotalPages"] == PIECE_PAGES
    target.ask("once 1")
    all_out(service.monitor, 2)
    target.ask("twice 0")
    with pytest.raises(BusError, match="guest memory is mapped twice"):
        service.monitor.call("Enable")


def test_private_memory_is_told_of_and_left(service, target):
    service.attach(target.pid)
    target.ask("private")
    for _ in range(2):
        all_out(service.monitor, 1)
    assert service.monitor.log.count("left: private memory cannot be served") == 1


def test_with_regions_by_hand_nothing_is_added(service, target):
    addr = next(
        line.split()[0]
        for line in Path(f"/proc/{target.pid}/maps").read_text().splitlines()
        if "memfd:guest" in line
    )
    service.attach(target.pid, regions=[addr])
    target.ask("plug 1")
    all_out(service.monitor, 1)


def test_a_successor_follows_too(service, target):
    service.attach(target.pid)
    target.ask("plug 1")
    all_out(service.monitor, 2)
    service.monitor.kill()
    monitor = service.start()
    target.check(0, 1)
    target.ask("plug 2")
    all_out(monitor, 3)
    monitor.kill()
    monitor = service.start()
    assert monitor.status()["Restarts"] == 2
    target.check(0, 1, 2)
    monitor.disable()
    target.ask("unplug 1")
    all_out(monitor, 2)
    target.check(0, 2)
    service.detach()
