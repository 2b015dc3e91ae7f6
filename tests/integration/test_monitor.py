# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap-monitor as a program, with vmmswap-guest as the VMM and busctl as the operator."""

import contextlib
import ctypes
import json
import mmap
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.bus import PrivateBus, missing
from tests.support.guest import Guest, GuestError
from tests.support.guest_memory import map_guest_memory
from tests.support.monitor import DEADLINE_S, PLAIN, BusError, Monitor
from vmmswap.handoff import client

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

PAGES = 24 * 256  # of the guest below
REGIONS = ("16M", "8M")


@pytest.fixture
def monitor(bus, directory):
    with Monitor("web", bus, directory) as running:
        yield running


@pytest.fixture
def guest(monitor):
    with Guest(REGIONS, socket=monitor.socket) as running:
        assert running.wait_ready() == "web"
        running.fill()
        yield running


def check_all_right(guest, *, least=1):
    done = guest.verify()
    assert done.wrong_bytes == 0, done
    assert done.lost_processes == 0
    assert done.bytes >= least


# The main job


def test_memory_leaves_and_comes_back(monitor, guest):
    status = monitor.status()
    assert (status["State"], status["TotalPages"], status["Processes"]) == ("Ready", PAGES, 1)
    before = guest.memory().resident_bytes
    assert status["ResidentPages"] == before // 4096 > PAGES // 2

    status = monitor.enable()
    assert (status["State"], status["Error"]) == ("Active", "")
    assert status["SwapPages"] > PAGES // 2
    assert status["ResidentPages"] < PAGES // 100
    assert guest.memory().resident_bytes < before // 100
    assert status["StoredPages"] == status["SwapPages"]
    assert 0 < status["CompressedBytes"] <= status["StoredBytes"]
    assert 0 < status["NetFreedBytes"] <= before - guest.memory().resident_bytes - status["StoredRamBytes"]
    assert status["Mode"] in ("live", "freeze")

    check_all_right(guest, least=PAGES * 4096)
    monitor.until(lambda: are_counted(monitor.status(), status["SwapPages"]), "all faults to be counted")
    assert monitor.status()["FaultP50Us"] > 0

    status = monitor.disable()
    assert (status["State"], status["SwapPages"], status["NetFreedBytes"]) == ("Ready", 0, 0)
    assert guest.memory().resident_bytes >= before
    check_all_right(guest)


def are_counted(status, pages):
    """So many pages were copied in: the guest has the last one a little before it counts."""
    faults = status["CopiedPages"] + status["ZeroedPages"]
    return status["CopiedPages"] == pages and status["FaultCount"] >= faults


def test_no_core_dump_holds_the_guests_bytes(monitor):
    """0 would not do: a core_pattern that is a pipe ignores it."""
    _, ours = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 0 if ours == 0 else 1  # whoever has 0 may not be able to raise it
    for pid in (monitor.pid, *children_of(monitor.pid)):  # its keeper has those bytes, too
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(rf"^Max core file size +{limit} +{limit} ", limits, re.MULTILINE), limits


def children_of(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_enable_while_active_swaps_out_again_what_came_back(monitor, guest):
    monitor.enable()
    guest.touch(0, 100)
    assert monitor.status()["ResidentPages"] >= 100
    status = monitor.enable()
    assert (status["State"], status["CopiedPages"]) == ("Active", 0)
    assert guest.memory().resident_bytes < 100 * 4096
    check_all_right(guest)


def test_disable_while_ready_does_nothing(monitor, guest):
    assert monitor.disable()["State"] == "Ready"
    check_all_right(guest)


def test_rounds_under_load_with_forked_children_and_back_ends(monitor, guest):
    guest.fork(1)
    guest.backend(1)
    guest.work_start(rate=2000)
    for _ in range(3):
        assert monitor.enable()["State"] == "Active"
        guest.wait_work(200)
        assert monitor.disable()["State"] == "Ready"
        guest.wait_work(200)
    guest.work_stop()
    status = guest.status()
    assert (status.wrong_bytes, status.bus_errors) == (0, 0)
    assert monitor.status()["Processes"] == 3
    check_all_right(guest)


def test_turned_round_again_and_again_the_last_order_wins(monitor, guest):
    guest.work_start(rate=500)
    for member in ("Enable", "Disable", "Enable", "Enable", "Disable", "Disable", "Enable"):
        monitor.call(member)
    assert monitor.settled()["State"] == "Active"
    for member in ("Disable", "Enable", "Disable"):
        monitor.call(member)
    status = monitor.settled()
    assert (status["State"], status["SwapPages"]) == ("Ready", 0)
    guest.work_stop()
    check_all_right(guest)


def test_trim(monitor, guest):
    monitor.call("Trim")
    assert monitor.settled()["State"] == "Ready"
    monitor.enable()
    guest.touch(0, 1000)  # reads
    back = monitor.status()
    assert back["KeptPages"] > 0
    monitor.call("Trim")
    status = monitor.settled()
    assert (status["State"], status["KeptPages"]) == ("Active", 0)
    assert status["ResidentPages"] < back["ResidentPages"] - back["KeptPages"] + 512  # they have left again,
    assert status["WrittenBytes"] == back["WrittenBytes"]  # and nothing was written for it
    check_all_right(guest)


def test_trim_leaves_what_was_written_to(monitor, guest):
    monitor.enable()
    guest.work_start(rate=2000)
    guest.wait_work(500)
    guest.work_stop()
    back = monitor.status()
    monitor.call("Trim")
    status = monitor.settled()
    assert status["WrittenBytes"] == back["WrittenBytes"]
    assert 0 < status["ResidentPages"] <= back["ResidentPages"]
    monitor.enable()
    assert monitor.status()["ResidentPages"] < status["ResidentPages"]
    check_all_right(guest)


def test_before_a_vmm_has_come_there_is_nothing_to_enable(monitor):
    assert monitor.status()["TotalPages"] == 0
    assert monitor.error_of("Enable") == "NoSuchVM"
    assert monitor.error_of("Disable") == "NoSuchVM"


# The end


def test_exit_swaps_all_in_first(monitor, guest):
    monitor.enable()
    monitor.call("Exit")
    assert monitor.wait_exit() == 0
    assert not monitor.socket.exists()
    check_all_right(guest, least=PAGES * 4096)


def test_exit_without_a_vm(monitor):
    monitor.call("Exit")
    assert monitor.wait_exit() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_stop_swaps_all_in_first(monitor, guest, number):
    monitor.enable()
    monitor.process.send_signal(number)
    assert monitor.wait_exit() == 0
    check_all_right(guest, least=PAGES * 4096)


def test_a_stop_during_swap_out_turns_it_round(monitor, guest):
    monitor.call("Enable")
    monitor.process.send_signal(signal.SIGTERM)
    assert monitor.wait_exit() == 0
    check_all_right(guest, least=PAGES * 4096)


def test_a_closed_connection_swaps_all_in_and_ends_the_monitor(monitor, guest):
    monitor.enable()
    guest.disconnect()
    assert monitor.wait_exit() == 0
    check_all_right(guest, least=PAGES * 4096)


@pytest.mark.parametrize("state", ["Ready", "InProgress", "Active", "SwapIn"])
@pytest.mark.parametrize("how", ["kill", "exec"])
def test_the_vmm_may_die_in_each_state(monitor, guest, state, how):
    guest.fork(1)
    if state == "InProgress":
        monitor.call("Enable")
    elif state != "Ready":
        monitor.enable()
    if state == "SwapIn":
        monitor.call("Disable")
    if how == "kill":
        guest.kill()
    else:
        guest.hostile("exec")
    assert monitor.wait_exit() == 0
    assert "Traceback" not in monitor.log


def test_a_dead_child_is_forgotten(monitor, guest):
    (child,) = guest.fork(1)
    monitor.until(lambda: monitor.status()["Processes"] == 2, "the child")
    monitor.wait_log("forked by the VM")
    guest.kill_device(child)
    monitor.until(lambda: monitor.status()["Processes"] == 1, "the child's end")
    monitor.enable()
    check_all_right(guest)


# Who else maps the memory


def test_enable_is_refused_while_a_stranger_maps_guest_memory(monitor, guest):
    memfd = os.open(f"/proc/{guest.pid}/fd/{guest.status().memfd_fds[0]}", os.O_RDWR)
    program = f"import mmap; memory = mmap.mmap({memfd}, 4096); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], pass_fds=[memfd], **pipes) as stranger:
        os.close(memfd)
        assert stranger.stdout.readline()
        with pytest.raises(BusError, match=f"process {stranger.pid} .* without a userfaultfd"):
            monitor.call("Enable")
        assert monitor.error_of("Enable") == "NotSupported"
        assert monitor.status()["State"] == "Ready"
        stranger.communicate(b"\n")
    assert monitor.enable()["State"] == "Active"
    check_all_right(guest)


@contextlib.contextmanager
def private_mapper(guest):
    """A process that maps all of the guest's memory MAP_PRIVATE, as a clone of the VM does."""
    memfd = os.open(f"/proc/{guest.pid}/fd/{guest.status().memfd_fds[0]}", os.O_RDONLY)
    size = os.fstat(memfd).st_size
    program = (
        "import mmap, sys\n"
        f"memory = mmap.mmap({memfd}, {size}, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)\n"
        "print(flush=True)\n"
        "for _ in sys.stdin: print(any(memory[::mmap.PAGESIZE]), flush=True)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], pass_fds=[memfd], **pipes) as process:
        os.close(memfd)
        try:
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


def read_all(process):
    """Whether anything that it reads is not zero."""
    process.stdin.write(b"\n")
    process.stdin.flush()
    return process.stdout.readline() == b"True\n"


def test_enable_is_refused_while_somebody_maps_guest_memory_privately(monitor, guest):
    with private_mapper(guest) as clone:
        with pytest.raises(BusError, match=f"process {clone.pid} .* privately"):
            monitor.call("Enable")
        assert monitor.error_of("Enable") == "NotSupported"
        assert monitor.status()["State"] == "Ready"
        assert read_all(clone)
    assert monitor.enable()["State"] == "Active"
    check_all_right(guest)


def lost_entries(monitor):
    return re.findall(r"\d+ pages of guest memory are lost: .*", monitor.log)


def test_pages_that_something_else_filled_are_counted_and_reported_once(monitor, guest):
    guest.touch(0, 1003, write=True)  # pages of zeros are nowhere in the store
    monitor.all_out()
    guest.write_from_outside([*range(256), 1000, 1002])
    assert (monitor.status()["LostPages"], monitor.status()["State"]) == (0, "Active")
    status = monitor.disable()
    assert (status["LostPages"], status["State"], status["SwapPages"]) == (258, "Failed", 0)
    assert status["ErrorName"] == "org.vmmswap.Error.PagesLost"
    assert "258 pages" in status["Error"]
    [entry] = lost_entries(monitor)
    assert entry.startswith("258 pages")
    assert "(256 from address" in entry
    assert "offset 0x0 of memfd 0; 1 from address" in entry
    status = monitor.enable()  # damaged it stays, whatever is ordered
    assert (status["LostPages"], status["State"]) == (258, "Failed")
    assert status["SwapPages"] > 0


def test_a_lost_page_is_reported_when_the_guest_runs_into_it(monitor, guest):
    guest.touch(5, 1, write=True)
    monitor.all_out()
    guest.write_from_outside([5])
    guest.touch(5, 1, write=True)
    monitor.until(lambda: monitor.status()["LostPages"] == 1, "the lost page to be counted")
    monitor.wait_log("1 pages of guest memory are lost")
    assert monitor.status()["State"] == "Failed"


def test_who_maps_guest_memory_privately_while_it_is_out_has_all_of_it_brought_back(monitor, guest):
    monitor.all_out()
    with private_mapper(guest) as clone:
        monitor.until(lambda: monitor.status()["State"] == "Failed", "the refusal")
        status = monitor.status()
        assert (status["SwapPages"], status["ErrorName"]) == (0, "org.vmmswap.Error.NotSupported")
        assert f"process {clone.pid} " in status["Error"]
        assert "privately" in status["Error"]
        assert read_all(clone)
        assert monitor.error_of("Enable") == "NotSupported"
    assert monitor.all_out()["Error"] == ""
    check_all_right(guest)


def opened_memory(guest):
    return os.open(f"/proc/{guest.pid}/fd/{guest.status().memfd_fds[0]}", os.O_RDWR)


def brought_back(monitor):
    """The status once that is done."""
    monitor.until(
        lambda: (status := monitor.status())["State"] == "Failed" and not status["SwapPages"], "all"
    )
    return monitor.status()


def test_who_maps_guest_memory_while_it_is_out_has_it_brought_back(monitor, guest):
    monitor.all_out()
    memfd = opened_memory(guest)
    with mmap.mmap(memfd, 4096) as memory:
        os.close(memfd)
        status = brought_back(monitor)
        assert f"process {os.getpid()} (pytest) maps guest memory at " in status["Error"]
        assert "all memory is swapped in now" in monitor.log
        with pytest.raises(BusError, match="maps guest memory at"):
            monitor.call("Enable")
        assert bytes(memory) == memory_of(guest, memory)
    check_all_right(guest)
    monitor.all_out()
    check_all_right(guest)


def memory_of(guest, memory):
    """What the guest sees where this mapping is."""
    with Path(f"/proc/{guest.pid}/mem").open("rb") as file:
        file.seek(guest.status().regions[0].addr)
        return file.read(len(memory))


def test_who_opens_guest_memory_while_it_is_out_has_it_brought_back(monitor, guest):
    """Enable is accepted all the same: it says that this process does no harm. The next one may."""
    monitor.all_out()
    memfd = opened_memory(guest)
    status = brought_back(monitor)
    assert f"process {os.getpid()} (pytest) has opened guest memory (fd {memfd})" in status["Error"]
    assert os.pread(memfd, 4096, 0) != bytes(4096)
    monitor.all_out()
    program = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(program, pass_fds=[memfd], stdin=subprocess.PIPE) as second:
        error = brought_back(monitor)["Error"]
        assert f"process {second.pid} (python" in error
        second.communicate()
    os.close(memfd)
    check_all_right(guest)


def test_one_vm_per_socket(monitor, guest):
    with Guest(("1M",), socket=monitor.socket) as second, pytest.raises(GuestError, match="Busy"):
        second.wait_ready()
    assert monitor.enable()["State"] == "Active"
    check_all_right(guest)


def test_a_refused_message_has_no_effect_on_the_vm(monitor, guest):
    monitor.enable()
    with socket.socket(socket.AF_UNIX) as bad:
        bad.connect(str(monitor.socket))
        bad.sendall(b"no json\n")
        assert b'"error"' in bad.recv(4096)
    check_all_right(guest)
    assert monitor.disable()["State"] == "Ready"


def test_memory_can_be_added_and_taken_away(bus, directory):
    """A VMM in Python: a second memfd comes and goes, Active in between."""
    page = 4096
    with Monitor("web", bus, directory) as monitor, ExitStack() as undo:
        memory = [undo.enter_context(_Memory(64 * page)) for _ in range(2)]
        uffd = client.open_userfaultfd()
        undo.callback(os.close, uffd)
        dummy = client.DummyPage()
        undo.callback(dummy.close)
        vmm = undo.enter_context(client.VmmClient.connect(monitor.socket))
        first, second = (client.Region(item.addr, 64 * page, 0, 0) for item in memory)
        vmm.register([first], [memory[0].fd], uffd, dummy_page=dummy.addr)
        for item in memory:
            item.map[:] = os.urandom(64 * page)
        copies = [bytes(item.map) for item in memory]
        assert monitor.enable()["State"] == "Active"
        vmm.add_region([second], [memory[1].fd])
        assert monitor.status()["TotalPages"] == 128
        assert monitor.all_out()["SwapPages"] == 128
        assert [os.fstat(item.fd).st_blocks for item in memory] == [0, 0]
        assert [bytes(item.map) for item in memory] == copies
        assert monitor.disable()["State"] == "Ready"
        vmm.remove_region([client.Region(second.addr, second.size_bytes, 0, 1)])
        assert monitor.status()["TotalPages"] == 64
        vmm.add_region([second], [memory[1].fd])
        assert monitor.all_out()["SwapPages"] == 128
        assert [bytes(item.map) for item in memory] == copies


class _Memory:
    """A memfd with its mapping."""

    def __init__(self, size):
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self.map = map_guest_memory(self.fd, size)
        self._view = ctypes.c_char.from_buffer(self.map)
        self.addr = ctypes.addressof(self._view)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        del self._view
        self.map.close()
        os.close(self.fd)


# Page-fault logging


def test_page_faults_are_logged_in_the_seeds_format(monitor, guest, directory):
    regions = guest.status().regions
    monitor.all_out()
    monitor.call("StartPageFaultLogging")
    monitor.call("StartPageFaultLogging")
    assert monitor.status()["PageFaultLogging"] is True
    guest.touch(0, 50)
    monitor.call("StopPageFaultLogging")
    monitor.call("StopPageFaultLogging")
    assert monitor.status()["PageFaultLogging"] is False
    lines = (directory / "page_fault.log").read_text().splitlines()
    guest.touch(60, 50)
    assert len((directory / "page_fault.log").read_text().splitlines()) == len(lines)
    header = json.loads(lines[0])
    assert list(header) == ["base_timestamp", "regions"]
    assert header["regions"] == [{"base_address": item.addr, "len": item.size} for item in regions]
    faults = [json.loads(line) for line in lines[1:]]
    assert all(list(fault) == ["elapsed_nanos", "address", "id_uffd"] for fault in faults)
    touched = {fault["address"] // 4096 * 4096 for fault in faults}
    assert touched >= {regions[0].addr + page * 4096 for page in range(50)}
    assert {fault["id_uffd"] for fault in faults} == {0}
    assert all(re.fullmatch(r'\{"[a-z_]+":\d+,"address":\d+,"id_uffd":\d+\}', line) for line in lines[1:])


def test_a_page_fault_log_that_cannot_be_written_is_an_error_of_the_call(bus, directory):
    with ExitStack() as undo:
        absent = str(directory / "absent")
        monitor = undo.enter_context(Monitor("web", bus, directory, "--log-dir", absent))
        undo.enter_context(Guest(("1M",), socket=monitor.socket)).wait_ready()
        with pytest.raises(BusError, match="cannot write the page-fault log"):
            monitor.call("StartPageFaultLogging")
        assert monitor.status()["PageFaultLogging"] is False


def test_a_page_fault_log_whose_disk_is_full_is_over_and_can_be_started_again(bus, directory):
    config = directory / "vmmswap.conf"
    config.write_text("[Swap]\nDiskKeepFree=1000T\n")
    with ExitStack() as undo:
        monitor = undo.enter_context(Monitor("web", bus, directory, "--config", str(config)))
        undo.enter_context(Guest(("1M",), socket=monitor.socket)).wait_ready()
        for times in (1, 2):
            monitor.call("StartPageFaultLogging")
            monitor.until(lambda: not monitor.status()["PageFaultLogging"], "the log to be over")
            assert monitor.log.count("logging of page faults ends here") == times
        assert "Traceback" not in monitor.log


@pytest.fixture
def slow_log(directory):
    """A page-fault log whose writer waits for its reader."""
    path = directory / "page_fault.log"
    os.mkfifo(path)
    return path


def test_a_page_fault_log_on_a_disk_that_stands_still_holds_up_nothing(monitor, guest, slow_log):
    monitor.all_out()
    with ThreadPoolExecutor() as threads:
        started = threads.submit(monitor.call, "StartPageFaultLogging")
        monitor.until(lambda: monitor.status()["PageFaultLogging"], "the log to be opened")
        assert not started.done()
        with slow_log.open() as reader:
            started.result(DEADLINE_S)
            guest.touch(0, PAGES)
            monitor.call("StopPageFaultLogging")
            assert "is written later: its disk does not answer" in monitor.log
            assert monitor.status()["PageFaultLogging"] is False
            with pytest.raises(BusError, match="is still being written"):
                monitor.call("StartPageFaultLogging")
            faults = [json.loads(line) for line in reader.readlines()[1:]]
    base = guest.status().regions[0].addr
    touched = {fault["address"] // 4096 * 4096 for fault in faults}
    assert touched >= {base + page * 4096 for page in range(PAGES // 4)}
    check_all_right(guest)


def test_the_monitor_ends_while_its_page_fault_log_stands_still(monitor, guest, slow_log):
    monitor.all_out()
    with os.fdopen(os.open(slow_log, os.O_RDONLY | os.O_NONBLOCK)):
        monitor.call("StartPageFaultLogging")
        guest.touch(0, PAGES)
        monitor.call("Exit")
        assert monitor.wait_exit() == 0
    check_all_right(guest)


# Failure


@pytest.fixture
def small_disk(directory):
    path = directory / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "small", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize(
    "lines", [PLAIN, ("RamTierMax=2M", "RamTierCompression=none")], ids=["plain", "tiers"]
)
def test_a_full_swap_directory_stops_the_swap_out_and_loses_nothing(bus, directory, small_disk, lines):
    config = directory / "vmmswap.conf"
    # The reserve would end it before the disk does.
    config.write_text("\n".join(["[Swap]", "DiskKeepFree=0", *lines, ""]))
    options = ("--swap-dir", str(small_disk), "--config", str(config))
    with Monitor("web", bus, directory, *options) as monitor, ExitStack() as undo:
        guest = undo.enter_context(Guest(REGIONS, socket=monitor.socket))
        guest.wait_ready()
        guest.fill()
        status = monitor.enable()
        assert (status["State"], status["LimitedBy"], status["Error"]) == ("Active", "no-space", "")
        [line] = [line for line in monitor.log.splitlines() if "swap-out stopped at a limit" in line]
        assert "no space" in line
        assert (
            f"(no-space: {status['ResidentPages']} pages resident, {status['SwapPages']} in the store" in line
        )
        assert "MiB written to disk" in line
        assert min(status["SwapPages"], status["ResidentPages"]) > PAGES // 10
        check_all_right(guest, least=PAGES * 4096)
        assert monitor.enable()["LimitedBy"] == "no-space"
        ready = monitor.disable()
        assert (ready["State"], ready["LimitedBy"], ready["Error"]) == ("Ready", "", "")
        check_all_right(guest)
        subprocess.run(["mount", "-o", "remount,size=64M", str(small_disk)], check=True)
        status = monitor.enable()
        assert (status["State"], status["LimitedBy"]) == ("Active", "")
        check_all_right(guest)
        guest.kill()
        assert monitor.wait_exit() == 0


def test_the_bus_may_go_away_and_come_back(directory):
    with ExitStack() as undo:
        bus = undo.enter_context(PrivateBus())
        monitor = undo.enter_context(Monitor("web", bus, directory))
        guest = undo.enter_context(Guest(REGIONS, socket=monitor.socket))
        guest.wait_ready()
        guest.fill()
        monitor.enable()
        bus.stop()
        check_all_right(guest, least=PAGES * 4096)
        bus.start()
        monitor.wait_on_bus()
        assert monitor.status()["State"] == "Active"


# Bad input


def run(bus, *arguments, env=None):
    command = ["python3", "-m", "vmmswap.monitor.main", *arguments]
    command[0] = Monitor("x", bus, Path("/")).argv[0]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=DEADLINE_S, check=False, env=os.environ | (env or {})
    )


def one_line(result, *words):
    assert result.returncode not in (0, -signal.SIGKILL)
    lines = [line for line in result.stderr.splitlines() if "WARNING" not in line]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]
    return result.returncode


def test_wrong_names_and_options(bus, directory):
    for name in ("a b", ".x", "-x", "x" * 65, ""):
        assert one_line(run(bus, "--swap-dir", str(directory), name), "is not a VM name") == 2
    assert one_line(run(bus, "web", "--colour"), "unrecognized arguments: --colour") == 2
    assert one_line(run(bus), "NAME") == 2
    assert "usage:" in run(bus, "--help").stdout


def test_swap_directories_that_will_not_do(bus, directory):
    (directory / "file").touch()
    common = ("web", "--bus", bus.address, "--listen", str(directory / "socket"), "--swap-dir")
    assert one_line(run(bus, *common, str(directory / "absent")), "absent does not exist", "--swap-dir") == 69
    assert one_line(run(bus, *common, str(directory / "file")), "file is not a directory") == 69
    assert one_line(run(bus, *common, "/proc"), "/proc") == 69
    assert not (directory / "socket").exists()


def test_a_swap_directory_without_unnamed_files(bus):
    assert one_line(run(bus, "web", "--bus", bus.address, "--swap-dir", "/sys"), "O_TMPFILE", "ext4") == 69


def test_sockets_that_will_not_do(bus, directory):
    common = ("web", "--bus", bus.address, "--swap-dir", str(directory))
    assert one_line(run(bus, *common), "--listen PATH") == 69
    absent = str(directory / "absent" / "socket")
    assert one_line(run(bus, *common, "--listen", absent), "cannot listen") == 69
    assert one_line(run(bus, *common, "--listen", "/tmp/" + "x" * 120), "107 bytes") == 69


def test_a_socket_that_nobody_listens_on_is_taken_over_and_a_live_one_is_not(bus, directory):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "socket"))
    with Monitor("web", bus, directory) as monitor:
        common = ("db", "--bus", bus.address, "--swap-dir", str(directory))
        assert one_line(run(bus, *common, "--listen", str(monitor.socket)), "cannot listen") == 69
        assert monitor.socket.stat().st_mode & 0o777 == 0o660


def test_no_bus(bus, directory):
    common = ("web", "--swap-dir", str(directory), "--listen", str(directory / "socket"))
    assert one_line(run(bus, *common, "--bus", f"unix:path={directory}/absent"), "bus") == 69
    assert one_line(run(bus, *common, env={"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/absent"}), "/absent") == 69


@pytest.mark.usefixtures("monitor")
def test_a_name_that_is_owned_already(bus, directory):
    common = ("web", "--swap-dir", str(directory), "--bus", bus.address)
    assert one_line(run(bus, *common, "--listen", str(directory / "second")), "already owned") == 69


def test_bad_configuration(bus, directory):
    (directory / "bad.conf").write_text("[Swap]\nColour=red\n")
    options = (
        "--swap-dir",
        str(directory),
        "--listen",
        str(directory / "s"),
        "--config",
        str(directory / "bad.conf"),
    )
    assert one_line(run(bus, "web", *options), "bad.conf:2: 'Colour' is not a key") == 78


def test_no_userfaultfd_for_a_normal_user(bus, directory):
    directory.chmod(0o777)
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0":
        pytest.skip("vm.unprivileged_userfaultfd is set: everyone may have a userfaultfd here")
    result = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *Monitor("web", bus, directory).argv],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert one_line(result, "/dev/userfaultfd", "CAP_SYS_PTRACE", "vm.unprivileged_userfaultfd") == 69


def test_failpoints_are_listed_by_the_build_that_has_them(bus):
    listed = run(bus, "--list-failpoints", env={"VMMSWAP_ENGINE": "failpoints"})
    assert listed.returncode == 0
    assert "store.write" in listed.stdout.split()
    assert one_line(run(bus, "--list-failpoints", "web"), "unrecognized arguments") == 2
