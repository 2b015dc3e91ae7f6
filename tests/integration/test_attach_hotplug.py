# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that an attached VMM maps and unmaps later, without a word to us."""

from __future__ import annotations

import select
import subprocess
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from tests.guests.attached import attaching
from tests.support import programs
from tests.support.bus import missing
from tests.support.monitor import BusError
from tests.support.patience import PATIENCE
from tests.support.restarts import failing, keepers, memfds_of, wait_gone
from vmmswap.errors import NoSuchVMError, ProtocolError
from vmmswap.failpoint import VARIABLE

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

SOURCE = Path(programs.__file__).with_name("hotplug_target.c")
PIECE_PAGES = (16 << 20) // 4096
DEADLINE_S = 60.0 * PATIENCE


def links_of(pid):
    return sorted(str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir())


class Target:
    """The running hotplug_target.c. Leaving the `with` block kills it."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [str(programs.built(SOURCE)), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        word, device_pid = self._line().split()
        assert word == "ready"
        self.device_pid = int(device_pid)

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

    def device(self, *orders):
        self.ask(*(f"device {order}" for order in orders))

    def check_device(self, *numbers):
        self.ask(*(f"device check {number}" for number in numbers), answer="right")

    def _answer(self, expected):
        assert self._line() == expected

    def _line(self):
        assert select.select([self.process.stdout], [], [], DEADLINE_S)[0], "the target stands still"
        return self.process.stdout.readline().strip()

    @property
    def links(self):
        return links_of(self.pid)


@pytest.fixture
def service(bus, directory):
    with attaching(bus, directory) as running:
        yield running


@pytest.fixture
def target():
    with Target() as running:
        yield running


def all_out(monitor, pieces):
    """Enable leaves nothing of so many pieces on RAM."""
    status = monitor.all_out()
    wanted = pieces * PIECE_PAGES
    assert (status["SwapPages"], status["TotalPages"]) == (wanted, wanted), (status, monitor.log)


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
    assert memfds_of(monitor.pid, "guest") == memfds_of(target.pid, "guest")
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
    with pytest.raises(BusError, match=r"nobody maps guest memory .* any more.*call Disable, then Enable"):
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
    assert service.monitor.log.count("left: private, and other memory, which is shared") == 1


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


# --- a device's process


def enable_all(monitor, target, pieces, processes=2):
    all_out(monitor, pieces)
    assert monitor.status()["Processes"] == processes
    target.check_device(*range(pieces))
    target.check(*range(pieces))
    all_out(monitor, pieces)


@pytest.mark.parametrize("is_out", [False, True])
def test_a_known_process_maps_more_when_it_is_known_already(service, target, is_out):
    target.device("map 0")
    service.attach(target.pid)
    target.ask("plug 1")
    all_out(service.monitor, 2)  # piece 1 is known, and the device does not have it
    if not is_out:
        service.monitor.disable()
    target.device("map 1")
    if is_out:
        service.monitor.wait_log(
            f"process {target.device_pid} (hotplug-target) has mapped guest memory while"
        )
        service.monitor.until(lambda: is_served(target.device_pid, 2), "the device to be served there")
    enable_all(service.monitor, target, 2)
    service.detach()
    target.check_device(0, 1)
    assert "anon_inode:[userfaultfd]" not in links_of(target.device_pid)


def is_served(pid, pieces):
    """Whether all guest memory in a process is registered with a userfaultfd."""
    blocks = Path(f"/proc/{pid}/smaps").read_text().split("VmFlags:")
    flags = [after.split("\n")[0] for before, after in pairwise(blocks) if "memfd:guest" in before]
    return len(flags) == pieces and all(" um " in item for item in flags)


def test_a_device_maps_other_memory_than_before_while_all_is_out(service, target):
    """What it no longer has cannot be registered, and need not be."""
    target.device("map 0")
    target.ask("plug 1")
    service.attach(target.pid)
    all_out(service.monitor, 2)
    target.device("unmap 0", "map 1")
    service.monitor.until(lambda: is_served(target.device_pid, 1), "the device to be served there")
    target.check_device(1)
    target.check(0, 1)
    target.device("map 0")
    enable_all(service.monitor, target, 2)


def test_a_device_that_maps_the_memory_twice_is_refused(service, target):
    target.device("map 0")
    service.attach(target.pid)
    target.ask("plug 1")
    target.device("map 1", "twice 1")
    with pytest.raises(BusError, match=rf"process {target.device_pid} .*guest memory is mapped twice"):
        service.monitor.call("Enable")
    target.device("once 1")
    enable_all(service.monitor, target, 2)


def test_a_device_that_maps_the_memory_anew_at_its_place(service, target):
    """As a vhost-user back-end does that is given its memory table again: the kernel knows nothing of it."""
    target.device("map 0")
    service.attach(target.pid)
    all_out(service.monitor, 1)
    target.device("again 0")
    service.monitor.wait_log(f"process {target.device_pid} (hotplug-target) has mapped guest memory while")
    service.monitor.until(lambda: is_served(target.device_pid, 1), "the device to be served again")
    enable_all(service.monitor, target, 1)
    service.monitor.disable()
    target.device("again 0")
    enable_all(service.monitor, target, 1)


def test_a_device_maps_what_the_vmm_has_the_other_way_round(service, target):
    """Neighbours in the file, and not in the guest."""
    target.ask("split 1")
    service.attach(target.pid)
    all_out(service.monitor, 3)
    service.monitor.disable()
    target.device("map 0", "whole 1")
    all_out(service.monitor, 3)
    target.check_device(0, 1)
    target.check(0, 1)
    all_out(service.monitor, 3)
    target.check(0, 1)


def test_neighbours_stay_when_one_of_them_goes(service, target):
    """Four pieces side by side: of three that are left the lowest goes, while the other two are out."""
    target.ask("plug 1", "plug 2", "plug 3")
    service.attach(target.pid)
    monitor = service.monitor
    all_out(monitor, 4)
    monitor.disable()
    target.ask("unplug 0")
    all_out(monitor, 3)
    target.check(3)
    target.ask("unplug 3")
    monitor.until(lambda: monitor.status()["TotalPages"] == 2 * PIECE_PAGES, "the piece to be forgotten")
    service.monitor.kill()
    monitor = service.start()
    target.check(1, 2)
    all_out(monitor, 2)
    assert "has mapped guest memory while" not in monitor.log


def test_one_that_cannot_be_served_does_not_keep_others_from_it(service, target):
    """The VMM maps a piece twice while all is out; a device that comes then is served and told of."""
    service.attach(target.pid)
    monitor = service.monitor
    all_out(monitor, 1)
    target.ask("twice 0")
    monitor.wait_log("guest memory is mapped twice")
    target.device("map 0")
    monitor.wait_log(f"process {target.device_pid} (hotplug-target) has mapped guest memory while")
    monitor.until(lambda: is_served(target.device_pid, 1), "the device to be served")
    target.check_device(0)
    assert monitor.log.count("guest memory is mapped twice") == 1
    target.ask("once 0")
    enable_all(monitor, target, 1)


def test_new_memory_is_nobodys_fault(service, target):
    """Piece 0 is out; the device and the VMM map piece 1, of which nothing is, and a stranger too."""
    target.device("map 0")
    service.attach(target.pid)
    all_out(service.monitor, 1)
    target.ask("plug 1")
    target.device("map 1")
    enable_all(service.monitor, target, 2)
    assert "has mapped guest memory while" not in service.monitor.log


def test_a_device_maps_several_pieces_side_by_side(service, target):
    """In the order in which they are in the guest."""
    target.ask("plug 1", "plug 2")
    target.device("map 2")
    service.attach(target.pid)
    target.device("map 0", "map 1")
    enable_all(service.monitor, target, 3)


# --- forked children


def test_a_child_without_the_memory(service, target):
    """QEMU's guest memory is not inherited. What a child has at its place is the child's own."""
    target.ask("dontfork 0")
    service.attach(target.pid)
    target.ask("fork", "child squat 0")
    for _ in range(2):
        all_out(service.monitor, 1)
        target.ask("child zeros 0", answer="right")
        target.check(0)
    target.ask("fork")  # while all is out
    target.ask("child squat 0")
    all_out(service.monitor, 1)
    target.ask("child zeros 0", answer="right")
    target.check(0)
    assert "has mapped guest memory while" not in service.monitor.log


def test_a_child_that_maps_other_parts_of_the_memory(service, target):
    target.ask("plug 1")
    service.attach(target.pid)
    target.ask("fork")
    service.monitor.wait_log("forked by the VM, shares its memory")
    all_out(service.monitor, 2)
    target.check(0, 1)
    service.monitor.disable()
    target.ask("child swap")
    with pytest.raises(BusError, match="maps guest memory at 0x"):
        service.monitor.call("Enable")
    target.ask("child squat 0", "child squat 1")
    with pytest.raises(BusError, match="forked by the VM, no longer maps all guest memory"):
        service.monitor.call("Enable")
    target.ask("child zeros 0", answer="right")
    target.check(0, 1)


def test_a_device_lets_go_of_what_was_chosen_by_hand(service, target):
    target.device("map 0")
    addr = next(
        line.split()[0]
        for line in Path(f"/proc/{target.pid}/maps").read_text().splitlines()
        if "memfd:guest" in line
    )
    service.attach(target.pid, regions=[addr])
    all_out(service.monitor, 1)
    service.monitor.disable()
    target.device("unmap 0")
    all_out(service.monitor, 1)
    target.check(0)
    service.monitor.disable()
    target.device("map 0")
    enable_all(service.monitor, target, 1)


# --- killed at each step


@pytest.fixture
def doomed(service):
    """A function that starts the monitor anew, to be killed when it reaches a step."""

    def start(step, skip=0):
        service.monitor.kill()
        service.start(env={VARIABLE: f"{step}=kill@{skip}"})
        return service.monitor

    return start


def await_death(service):
    service.monitor.process.wait(DEADLINE_S)
    service.start()
    return service.monitor


@pytest.mark.parametrize("skip", [0, 1])  # the VMM's new memory, and then the device's
def test_killed_when_new_memory_is_recorded(service, doomed, target, skip):
    target.device("map 0")
    doomed("memory.recorded", skip)
    service.attach(target.pid)
    target.ask("plug 1")
    target.device("map 1")
    with suppress(BusError):
        service.monitor.call("Enable")
    enable_all(await_death(service), target, 2)
    service.detach()
    target.check_device(0, 1)


def test_killed_when_memory_is_removed(service, doomed, target):
    doomed("memory.removed")
    target.ask("plug 1")
    service.attach(target.pid)
    target.ask("unplug 1")
    monitor = await_death(service)
    target.ask("plug 1", "plug 2")
    all_out(monitor, 3)
    target.check(0, 1, 2)
    monitor.disable()
    target.check(0, 1, 2)


def test_killed_when_something_else_is_at_a_place_of_guest_memory(service, target):
    """Nobody has looked yet, and its successor must not fill it with the guest's bytes."""
    target.ask("plug 1", "plug 2")
    target.device("map 0", "map 1", "map 2")
    service.attach(target.pid)
    all_out(service.monitor, 3)
    service.monitor.kill()
    target.device("unmap 2")
    target.ask("squat 1")
    monitor = service.start()
    target.ask("zeros 1", answer="right")
    target.check(0, 2)
    target.check_device(0, 1)
    all_out(monitor, 3)
    monitor.disable()
    target.ask("zeros 1", answer="right")
    target.check(0, 2)
    target.check_device(0, 1)


@pytest.mark.parametrize("dontfork", [0, 1])
def test_killed_when_a_child_without_a_part_was_forked(service, target, dontfork):
    """Its userfaultfd is with the keeper. What it did not inherit is not what it is known by."""
    target.ask("plug 1", f"dontfork {dontfork}")
    service.attach(target.pid)
    all_out(service.monitor, 2)
    service.monitor.kill()
    monitor = service.start("--debug", env=failing("fault.fork-read=kill"))
    target.ask("fork", f"child squat {dontfork}")
    monitor.process.wait(DEADLINE_S)
    for pid in keepers(monitor):
        wait_gone(pid)
    monitor = service.start()
    inherited = 1 - dontfork
    target.ask(f"child check {inherited}", f"child zeros {dontfork}", answer="right")
    assert monitor.status()["Processes"] == 2
    target.check(0, 1)
    all_out(monitor, 2)
    target.ask(f"child check {inherited}", f"child zeros {dontfork}", answer="right")
    target.check(0, 1)


@pytest.mark.parametrize("step", ["process.stored", "process.added"])
@pytest.mark.parametrize("is_out", [False, True])
def test_killed_when_one_more_process_is_added(service, doomed, target, step, is_out):
    doomed(step, skip=1)  # the first is the VMM
    service.attach(target.pid)
    if is_out:
        all_out(service.monitor, 1)
    target.device("map 0")
    if not is_out:
        with suppress(BusError):
            service.monitor.call("Enable")
    monitor = await_death(service)
    enable_all(monitor, target, 1)
    assert monitor.log.count("has mapped guest memory while") == is_out  # its successor knows of it
    service.detach()
    target.check_device(0)
    assert "anon_inode:[userfaultfd]" not in links_of(target.device_pid)


@pytest.mark.parametrize("step", ["process.stored", "process.added"])
def test_killed_when_the_vmm_is_attached_to(service, doomed, target, step):
    """It is as before: nothing of it waits for anybody."""
    doomed(step)
    with suppress(ProtocolError, NoSuchVMError):
        service.attach(target.pid)
    await_death(service)
    service.attach(target.pid)
    target.device("map 0")
    enable_all(service.monitor, target, 1)


def test_enable_and_detach_at_once(service, target):
    """A process that is being attached to is let go again."""
    links = links_of(target.device_pid)
    target.device("map 0")
    for _ in range(5):
        service.attach(target.pid)
        target.device("unmap 0")
        all_out(service.monitor, 1)
        service.monitor.disable()
        target.device("map 0")
        with subprocess.Popen(
            service.monitor.call_command("Enable"), stderr=subprocess.PIPE, text=True
        ) as enabling:
            while "userfaultfd" not in str(links_of(target.device_pid)) and enabling.poll() is None:
                pass  # it is attached to any moment
            service.detach()
            _, error = enabling.communicate()
        assert "bug in vmmswap" not in error
        assert links_of(target.device_pid) == links
        assert not is_served(target.device_pid, 1)
        service.start()
        target.check(0)
