# SPDX-License-Identifier: GPL-2.0-or-later
"""Firecracker's hand-off: private memory served from a snapshot's memory file, by a monitor as a program."""

import json
import os
import signal
import socket
from contextlib import contextmanager, suppress

import pytest

from tests.support.bus import missing
from tests.support.firecracker import PAGE, Firecracker, make_snapshot, sum_of
from tests.support.monitor import BusError, Monitor
from tests.support.notify import ServiceManager
from tests.support.restarts import Restarted

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

SIZES_MIB = (6, 10)  # two regions, as a guest with more than 3 GiB has
PAGES = sum(SIZES_MIB) * 256
HOLES = (range(100, 400), range(1400, 2000))  # the second one across both regions
DATA_PAGES = PAGES - sum(map(len, HOLES))
INEXACT = 96  # pages: what the VMM's program takes for itself, and older kernels' rounding on each CPU


@pytest.fixture
def snapshot(directory):
    return make_snapshot(directory / "memory", PAGES, holes=HOLES)


def configuration(directory, file):
    path = directory / "vmmswap.conf"
    path.write_text(f"[VM web]\nSnapshotFile={file}\n")
    return "--config", str(path)


@pytest.fixture
def monitor(bus, directory, snapshot):
    assert snapshot
    with Monitor("web", bus, directory, *configuration(directory, directory / "memory")) as running:
        yield running


@contextmanager
def served(monitor, sizes_mib=SIZES_MIB, **options):
    with Firecracker(monitor.socket, sizes_mib, **options) as vmm:
        monitor.wait_log("registered: process")
        yield vmm


def counted(monitor, **wanted):
    """The status once it counts what the guest has had: a page is there a little before that is noted."""
    monitor.until(lambda: wanted.items() <= monitor.status().items(), f"{wanted}")
    return monitor.status()


def check_all_right(vmm, expected, directory):
    got = vmm.read(0, PAGES, directory / "seen")
    spans = [slice(start, start + PAGE) for start in range(0, PAGES * PAGE, PAGE)]
    wrong = [page for page, span in enumerate(spans) if got[span] != expected[span]]
    assert not wrong, f"{len(wrong)} pages are wrong, from page {wrong[0]} on"


@pytest.mark.parametrize(("version", "odd"), [("new", ""), ("old", ""), ("new", "split")])
def test_pages_come_from_the_file_when_they_are_needed(monitor, directory, snapshot, version, odd):
    with served(monitor, version=version, odd=odd) as vmm:
        status = monitor.status()
        assert (status["State"], status["TotalPages"], status["Processes"]) == ("Active", PAGES, 1)
        assert status["SwapPages"] == DATA_PAGES
        assert status["ResidentPages"] <= INEXACT
        assert (status["StoredBytes"], status["WrittenBytes"]) == (0, 0)

        assert vmm.sum(500, 20) == sum_of(snapshot[500 * PAGE : 520 * PAGE])
        assert vmm.sum(100, 3) == 0
        status = counted(monitor, CopiedPages=20, ZeroedPages=3, SwapPages=DATA_PAGES - 20, FaultCount=23)
        assert status["FaultP50Us"] > 0
        vmm.sum(2000, 500)
        assert abs(monitor.status()["ResidentPages"] - 520) <= INEXACT

        check_all_right(vmm, snapshot, directory)
        assert vmm.sum(0, PAGES) == sum_of(snapshot)
        status = counted(monitor, SwapPages=0, CopiedPages=DATA_PAGES)
        assert abs(status["ResidentPages"] - DATA_PAGES) <= INEXACT
        assert vmm.ask("write 100 300 66") == "ok"  # a hole
        assert abs(monitor.status()["ResidentPages"] - DATA_PAGES - 300) <= INEXACT


def test_nothing_goes_out(monitor, directory, snapshot):
    with served(monitor) as vmm:
        vmm.sum(0, 10)
        before = counted(monitor, CopiedPages=10, FaultCount=10)
        for member in ("Enable", "Trim"):
            assert monitor.error_of(member) == "NotSupported"
            with pytest.raises(BusError, match=r"private and came from a snapshot.*Disable"):
                monitor.call(member)
        after = monitor.status()
        for status in (before, after):
            del status["FaultsPerSecond"]  # of the last whole second
        assert after == before
        check_all_right(vmm, snapshot, directory)


def test_disable_brings_all_in_and_nobody_is_needed_any_more(monitor, directory, snapshot):
    with served(monitor) as vmm:
        assert vmm.ask("write 7 1 65") == "ok"
        status = monitor.disable()
        assert (status["State"], status["SwapPages"], status["Error"]) == ("Ready", 0, "")
        assert abs(status["ResidentPages"] - DATA_PAGES) <= INEXACT
        assert monitor.error_of("Enable") == "NotSupported"
        monitor.kill()
        assert vmm.ask("balloon 9 1") == "ok"
        expected = bytearray(snapshot)
        expected[7 * PAGE : 8 * PAGE] = b"A" * PAGE
        expected[9 * PAGE : 10 * PAGE] = bytes(PAGE)
        check_all_right(vmm, expected, directory)


def test_what_the_balloon_took_never_comes_back_from_the_file(monitor, directory, snapshot):
    expected = bytearray(snapshot)
    with served(monitor) as vmm:
        vmm.sum(600, 50)
        assert vmm.ask("write 630 20 66") == "ok"
        assert vmm.ask("balloon 610 100") == "ok"  # pages that were read, written, and never touched
        expected[610 * PAGE : 710 * PAGE] = bytes(100 * PAGE)
        assert vmm.ask("write 640 1 67") == "ok"
        expected[640 * PAGE : 641 * PAGE] = b"C" * PAGE
        counted(monitor, SwapPages=DATA_PAGES - 50 - 60)
        check_all_right(vmm, expected, directory)
        monitor.disable()
        check_all_right(vmm, expected, directory)


@pytest.mark.parametrize("version", ["new", "old"])
def test_what_was_mapped_anew_is_zeros(monitor, directory, snapshot, version):
    """The balloon of an older Firecracker, of which no event tells."""
    expected = bytearray(snapshot)
    with served(monitor, version=version) as vmm:
        vmm.sum(600, 20)
        assert vmm.ask("remap 610 30") == "ok"  # pages that were read, and that never were
        expected[610 * PAGE : 640 * PAGE] = bytes(30 * PAGE)
        assert vmm.ask("write 630 2 66") == "ok"
        expected[630 * PAGE : 632 * PAGE] = b"B" * 2 * PAGE
        assert monitor.disable()["State"] == "Ready"
        check_all_right(vmm, expected, directory)


def test_memory_that_is_not_plugged_in(monitor, directory, snapshot):
    """Newer Firecrackers forbid all access to it, soon after the hand-off."""
    with Firecracker(monitor.socket, SIZES_MIB) as vmm:
        assert vmm.ask("forbid 700 100") == "ok"
        monitor.wait_log("registered: process")
        assert vmm.ask("allow 750 10") == "ok"
        assert vmm.sum(750, 10) == sum_of(snapshot[750 * PAGE : 760 * PAGE])
        assert monitor.disable()["State"] == "Ready"
        assert vmm.ask("allow 700 100") == "ok"
        check_all_right(vmm, snapshot, directory)


def test_page_faults_are_logged_with_their_addresses(monitor, directory, snapshot):
    assert snapshot
    with served(monitor) as vmm:
        monitor.call("StartPageFaultLogging")
        for page in (5, 2000, 3):
            vmm.sum(page, 1)
        monitor.call("StopPageFaultLogging")
    lines = [json.loads(line) for line in (directory / "page_fault.log").read_text().splitlines()]
    first, second = lines[0]["regions"]
    assert [first["len"] >> 20, second["len"] >> 20] == list(SIZES_MIB)
    low_pages = SIZES_MIB[0] * 256
    assert [line["address"] for line in lines[1:]] == [
        first["base_address"] + 5 * PAGE,
        second["base_address"] + (2000 - low_pages) * PAGE,
        first["base_address"] + 3 * PAGE,
    ]


@pytest.fixture
def service(bus, directory, snapshot):
    assert snapshot
    with ServiceManager(directory) as manager:
        options = configuration(directory, directory / "memory")
        running = Restarted(bus, directory, manager, *options)
        running.start().wait_on_bus()
        yield running
        running.close()


def test_a_successor_goes_on_from_the_page_map(service, directory, snapshot):
    expected = bytearray(snapshot)
    with served(service.monitor) as vmm:
        kept = {"manifest", "page-map", "store", "wake-record", "uffd-0", "pidfd-0"}
        service.monitor.until(lambda: set(service.manager.kept) == kept, "the message to be taken out")
        vmm.sum(0, 50)
        assert vmm.ask("write 10 5 68") == "ok"
        expected[10 * PAGE : 15 * PAGE] = b"D" * 5 * PAGE
        assert vmm.ask("balloon 20 5") == "ok"
        expected[20 * PAGE : 25 * PAGE] = bytes(5 * PAGE)
        service.monitor.kill()
        vmm.say("sum 60 1")
        monitor = service.start()
        assert int(vmm.answer()) == sum_of(snapshot[60 * PAGE : 61 * PAGE])
        monitor.wait_on_bus()
        status = monitor.status()
        assert (status["State"], status["Restarts"], status["SwapPages"]) == ("Active", 1, DATA_PAGES - 51)
        assert status["ResidentPages"] <= 46 + INEXACT
        vmm.sum(2000, 500)
        assert abs(monitor.status()["ResidentPages"] - 546) <= INEXACT
        check_all_right(vmm, expected, directory)
        assert monitor.error_of("Enable") == "NotSupported"
        assert monitor.disable()["State"] == "Ready"
        monitor.kill()
        monitor = service.start()
        monitor.wait_on_bus()
        assert monitor.status()["State"] == "Ready"
        check_all_right(vmm, expected, directory)
    assert monitor.wait_exit() == 0


def test_a_successor_leaves_alone_what_was_mapped_anew(service, directory, snapshot):
    expected = bytearray(snapshot)
    with served(service.monitor) as vmm:
        vmm.sum(0, 10)
        assert vmm.ask("remap 5 10") == "ok"
        service.monitor.kill()
        assert vmm.ask("remap 40 10") == "ok"
        for start in (5, 40):
            expected[start * PAGE : (start + 10) * PAGE] = bytes(10 * PAGE)
        service.start().wait_on_bus()
        assert vmm.sum(40, 10) == 0
        check_all_right(vmm, expected, directory)


@pytest.mark.parametrize("point", ["resolve.claimed", "resolve.copied", "restore.fetched", "restore.copied"])
def test_killed_at_each_step_of_bringing_pages_in(service, directory, snapshot, point):
    service.monitor.kill()
    service.start({"VMMSWAP_FAILPOINTS": f"{point}=kill@2"}).wait_on_bus()
    with served(service.monitor) as vmm:
        if point.startswith("restore"):
            with suppress(BusError):  # it may die before it answers
                service.monitor.call("Disable")
        else:
            vmm.say("sum 0 100")
        assert service.await_death()
        monitor = service.start()
        if point.startswith("resolve"):
            assert int(vmm.answer()) == sum_of(snapshot[: 100 * PAGE])
        monitor.wait_on_bus()
        check_all_right(vmm, snapshot, directory)
        assert monitor.disable()["State"] == "Ready"
        check_all_right(vmm, snapshot, directory)


# Firecracker says only once where its memory is. Each name is stored at some moment of the registration.


def kill_when_kept(service, name):
    pid = service.monitor.pid
    service.manager.at(name, lambda: service.manager.kill(pid))


@pytest.mark.parametrize("names", [["message"], ["page-map"], ["manifest"], ["message", "page-map"]])
def test_killed_while_the_vm_registers(service, directory, snapshot, names):
    kill_when_kept(service, names[0])
    with Firecracker(service.monitor.socket, SIZES_MIB) as vmm:
        vmm.say("sum 60 1")
        for name in names[1:]:
            assert service.await_death()
            service.manager.at(name, lambda: service.manager.kill(service.monitor.pid))
            service.start()
        assert service.await_death()
        assert ("manifest" in service.manager.kept) == (names == ["manifest"])
        monitor = service.start()
        assert int(vmm.answer()) == sum_of(snapshot[60 * PAGE : 61 * PAGE])
        monitor.wait_on_bus()
        assert monitor.status()["State"] == "Active"
        assert set(service.manager.kept) == {
            *("manifest", "page-map", "store", "wake-record", "uffd-0", "pidfd-0")
        }
        check_all_right(vmm, snapshot, directory)
        with Firecracker(monitor.socket, SIZES_MIB):
            monitor.wait_log("is taken by process")
        assert monitor.disable()["State"] == "Ready"
        check_all_right(vmm, snapshot, directory)
    assert monitor.wait_exit() == 0


def test_mapped_anew_before_the_vm_is_registered(service, directory, snapshot):
    kill_when_kept(service, "message")
    expected = bytearray(snapshot)
    with Firecracker(service.monitor.socket, SIZES_MIB) as vmm:
        assert service.await_death()
        assert vmm.ask("remap 0 10") == "ok"
        expected[: 10 * PAGE] = bytes(10 * PAGE)
        service.start().wait_on_bus()
        check_all_right(vmm, expected, directory)


def test_the_vmm_ends_while_its_message_is_kept(service, directory, snapshot):
    kill_when_kept(service, "message")
    with Firecracker(service.monitor.socket, SIZES_MIB):
        assert service.await_death()
    monitor = service.start()
    monitor.wait_log("hand-off refused: the process")
    monitor.wait_on_bus()
    assert not service.manager.kept
    with served(monitor) as vmm:
        check_all_right(vmm, snapshot, directory)


def test_a_kept_message_is_refused(service, directory):
    kill_when_kept(service, "message")
    with Firecracker(service.monitor.socket, SIZES_MIB):
        assert service.await_death()
        (directory / "memory").unlink()
        monitor = service.start()
        monitor.wait_log("cannot be opened: No such file")
        monitor.wait_on_bus()
        assert not service.manager.kept


def test_a_refused_message_is_not_kept(service):
    with Firecracker(service.monitor.socket, SIZES_MIB, odd="shared"):
        service.manager.wait_line("FDNAME=message")
        service.monitor.wait_log("which is not private anonymous memory")
    service.monitor.until(lambda: not service.manager.kept, "the store to be empty")


def test_told_to_stop_while_the_vm_registers(service, directory, snapshot):
    pid = service.monitor.pid
    service.manager.at("message", lambda: os.kill(pid, signal.SIGTERM))
    with Firecracker(service.monitor.socket, SIZES_MIB) as vmm:
        assert service.monitor.wait_exit() == 0
        assert "registered: process" in service.monitor.log
        check_all_right(vmm, snapshot, directory)
    service.monitor.until(lambda: not service.manager.kept, "the store to be empty")


def test_told_to_restart_while_the_vm_registers(service, directory, snapshot):
    pid = service.monitor.pid
    service.manager.at("message", lambda: os.kill(pid, signal.SIGUSR2))
    with Firecracker(service.monitor.socket, SIZES_MIB) as vmm:
        assert service.monitor.wait_exit() == 75
        monitor = service.start()
        monitor.wait_on_bus()
        status = monitor.status()
        assert (status["State"], status["Restarts"], status["SwapPages"]) == ("Active", 1, DATA_PAGES)
        check_all_right(vmm, snapshot, directory)


def test_the_vmms_end_is_the_monitors(monitor):
    with served(monitor):
        pass
    assert monitor.wait_exit() == 0


def test_exit_brings_all_in_first(monitor, directory, snapshot):
    with served(monitor) as vmm:
        monitor.call("Exit")
        assert monitor.wait_exit() == 0
        check_all_right(vmm, snapshot, directory)


def test_told_to_stop_brings_all_in_first(monitor, directory, snapshot):
    with served(monitor) as vmm:
        monitor.process.send_signal(signal.SIGTERM)
        assert monitor.wait_exit() == 0
        check_all_right(vmm, snapshot, directory)


def test_an_older_firecracker_that_gives_memory_up(monitor, directory, snapshot):
    """No event tells of it: what was never read comes back from the file, all else is zeros."""
    expected = bytearray(snapshot)
    with served(monitor, version="old") as vmm:
        monitor.wait_log("EVENT_REMOVE: what the guest gives up before")
        vmm.sum(500, 10)
        assert vmm.ask("write 505 10 66") == "ok"
        assert vmm.ask("balloon 500 20") == "ok"
        expected[500 * PAGE : 515 * PAGE] = bytes(15 * PAGE)
        check_all_right(vmm, expected, directory)
        assert monitor.disable()["State"] == "Ready"
        check_all_right(vmm, expected, directory)


def test_a_file_that_somebody_changed_is_not_served(monitor, directory, snapshot):
    assert snapshot
    with served(monitor) as vmm:
        vmm.sum(0, 1)
        with (directory / "memory").open("r+b") as file:
            file.write(b"another guest's memory")
        assert vmm.ask("sum 1 1") == "sigbus"
        monitor.wait_log("offset 0x1000 of the snapshot's file")
        for _ in range(2):
            with pytest.raises(BusError, match="pages of guest memory cannot be read back from the snap"):
                monitor.call("Disable")
        status = monitor.settled()
        assert (status["State"], status["PoisonedPages"], status["ZeroedPages"]) == ("Failed", 1, 0)
        assert status["SwapPages"] + status["PoisonedPages"] == DATA_PAGES - 1


# Refusals. Firecracker reads no answer: the journal has it.


@pytest.mark.parametrize(
    ("odd", "error"),
    [
        ("shared", "which is not private anonymous memory"),
        ("fork", "has the feature EVENT_FORK"),
        ("no-api", "UFFDIO_API is not done"),
        ("huge", "2097152 is not 4096"),
    ],
)
def test_what_cannot_be_served_is_refused(monitor, directory, snapshot, odd, error):
    with Firecracker(monitor.socket, SIZES_MIB, odd=odd):
        monitor.wait_log(error)
    assert monitor.status()["TotalPages"] == 0
    with served(monitor) as vmm:
        check_all_right(vmm, snapshot, directory)


def test_the_file_is_too_short(monitor):
    with Firecracker(monitor.socket, (6, 11)):
        monitor.wait_log(f"regions[1].offset: {6 << 20} + size {11 << 20} is past the end of SnapshotFile=")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("missing", "cannot be opened: No such file"),
        (".", "is not a regular file"),
        ("", "set SnapshotFile="),
    ],
)
def test_there_is_no_file(bus, directory, name, error):
    options = configuration(directory, directory / name if name else "")
    with Monitor("web", bus, directory, *options) as monitor, Firecracker(monitor.socket, SIZES_MIB):
        monitor.wait_log(error)


def test_the_configuration_is_read_at_each_hand_off(bus, directory, snapshot):
    options = configuration(directory, directory / "yesterday's")
    with Monitor("web", bus, directory, *options) as monitor:
        make_snapshot(directory / "yesterday's", PAGES)
        configuration(directory, directory / "memory")
        with served(monitor) as vmm:
            monitor.wait_log(f"guest memory comes from SnapshotFile={directory}/memory")
            check_all_right(vmm, snapshot, directory)


def test_the_configuration_has_a_mistake_at_the_hand_off(monitor, directory, snapshot):
    (directory / "vmmswap.conf").write_text("[VM web]\nColour=red\n")
    with Firecracker(monitor.socket, SIZES_MIB):
        monitor.wait_log(f"hand-off refused: {directory}/vmmswap.conf:2: 'Colour' is not a key")
    configuration(directory, directory / "memory")
    with served(monitor) as vmm:
        check_all_right(vmm, snapshot, directory)


def test_a_message_cut_short_has_no_effect(monitor, directory, snapshot):
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(monitor.socket))
        socket.send_fds(peer, [b'[{"base_host_virt_addr":4096,"size":'], [reader])
    os.close(reader)
    monitor.wait_log("hand-off refused")
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"nobody has the other end")
    os.close(writer)
    with served(monitor) as vmm:
        check_all_right(vmm, snapshot, directory)
