# SPDX-License-Identifier: GPL-2.0-or-later
"""The embedded guest by itself, without a monitor: it must be right, and it must be able to find fault."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import subprocess
from pathlib import Path

import pytest

from tests.support.guest import PAGE_BYTES, Guest, GuestError, guest_program, touch_order

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


@contextlib.contextmanager
def memfd_of(guest, idx=0):
    """The guest's memfd, opened from outside."""
    path = f"/proc/{guest.pid}/fd/{guest.status().memfd_fds[idx]}"
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def read_page(fd, page):
    return os.pread(fd, PAGE_BYTES, page * PAGE_BYTES)


def write_page(fd, page, data):
    assert os.pwrite(fd, data, page * PAGE_BYTES) == len(data)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # reaped before it was opened, or before it was read
        return False


def assert_all_right(guest):
    done = guest.verify()
    status = guest.status()
    assert (done.wrong_bytes, done.first_wrong, done.bus_errors, done.lost_processes) == (0, None, 0, 0)
    assert (status.wrong_bytes, status.first_wrong, status.bus_errors) == (0, None, 0)
    assert done.bytes == status.pages * PAGE_BYTES * status.processes


def exercise(guest, operations):
    """A bit of everything; all of it must be right."""
    guest.fill()
    assert_all_right(guest)
    forks = guest.fork(2)
    backends = guest.backend(1)
    guest.work_start(writes=50, kernel=10)
    guest.wait_work(operations)
    (grandchild,) = guest.fork(1, by=forks[0])
    guest.remove(10, 100, "madvise", by=forks[1])
    guest.remove(300, 5, "fallocate")
    guest.remove(400, 5, "balloon")
    guest.remove(500, 5, "dontneed")
    guest.kernel_io(600, 20, "read", by=backends[0])
    guest.kernel_io(600, 20, "write")
    guest.touch(0, 3, write=True, by=grandchild)
    guest.touch(0, 3, offset=4095)
    assert_all_right(guest)
    guest.wait_work(operations)
    guest.work_stop()
    assert guest.status().busy_workers == 0
    assert_all_right(guest)


def test_all_kinds_of_use_by_all_kinds_of_processes_are_consistent():
    with Guest(["8M", "4M,memfd=1", "2M,memfd=1,offset=8M"]) as guest:
        exercise(guest, 20000)
        status = guest.status()
        assert (status.processes, status.pages) == (5, 14 * 256)
        processes = {entry.process: entry for entry in guest.processes()}
        assert [entry.kind for entry in processes.values()] == ["main", "fork", "fork", "backend", "fork"]
        assert all(entry.reads and entry.writes and entry.verified_bytes for entry in processes.values())
        assert processes[4].parent == 1


@pytest.mark.parametrize("variant", ["clang", "asan", "tsan"])
def test_other_compilers_and_sanitizers_find_nothing(variant):
    # By default TSan refuses threads in a child of a program with threads; the guest's are made for it.
    env = {"TSAN_OPTIONS": "die_after_fork=0 halt_on_error=1", "ASAN_OPTIONS": "handle_sigbus=0"}
    with Guest(["4M", "2M"], program=guest_program(variant), env=env) as guest:
        exercise(guest, 500)
        assert guest.stderr() == ""


@pytest.mark.parametrize("process", [0, 1])
def test_verify_reports_a_corrupt_byte(process):
    with Guest(["2M"], mix="random=50,text=50") as guest:
        guest.fill()
        guest.fork(1)
        with memfd_of(guest) as fd:
            right = read_page(fd, 77)
        guest.corrupt(77, 1234)
        done = guest.verify(by=process)
        assert (done.wrong_bytes, done.wrong_pages) == (1, 1)
        wrong = done.first_wrong
        assert wrong is not None
        assert (wrong.page, wrong.offset, wrong.process) == (77, 1234, process)
        assert (wrong.expected, wrong.actual) == (right[1234], right[1234] ^ 0xFF)
        assert guest.status().first_wrong == wrong


@pytest.mark.parametrize("page_class", ["random", "text", "same"])
def test_verify_reports_bytes_of_an_earlier_version(page_class):
    with Guest(["1M"], mix=f"{page_class}=100") as guest, memfd_of(guest) as fd:
        guest.fill()
        old = read_page(fd, 5)
        guest.touch(5, write=True)
        assert read_page(fd, 5) != old
        write_page(fd, 5, old)
        done = guest.verify()
        assert done.wrong_pages == 1
        assert done.first_wrong is not None
        assert done.first_wrong.page == 5
        if page_class != "same":
            assert 0 < done.first_wrong.actual_version < done.first_wrong.expected_version


def test_verify_reports_zeros_where_a_page_was_lost():
    with Guest(["1M"], mix="random=100") as guest, memfd_of(guest) as fd:
        guest.fill()
        mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        assert libc.fallocate(fd, mode, 9 * PAGE_BYTES, PAGE_BYTES) == 0
        done = guest.verify()
        assert done.wrong_pages == 1
        assert done.first_wrong is not None
        assert (done.first_wrong.page, done.first_wrong.actual) == (9, 0)


def test_verify_reports_pages_that_changed_places():
    with Guest(["1M"], mix="random=100") as guest, memfd_of(guest) as fd:
        guest.fill()
        one, other = read_page(fd, 20), read_page(fd, 21)
        write_page(fd, 20, other)
        write_page(fd, 21, one)
        done = guest.verify()
        assert done.wrong_pages == 2
        assert done.first_wrong is not None
        assert (done.first_wrong.page, done.first_wrong.actual_version) == (20, 0)


@pytest.mark.parametrize(
    ("how", "expect", "may_keep"),
    [("madvise", "", False), ("balloon", "", False), ("dontneed", "", True), ("madvise", "either", True)],
)
def test_pages_given_up_read_as_zeros_or_if_allowed_as_before(how, expect, may_keep):
    with Guest(["1M"], mix="random=100") as guest, memfd_of(guest) as fd:
        guest.fill()
        old = read_page(fd, 30)
        guest.remove(30, 2, how, expect)
        write_page(fd, 30, old)  # what a monitor that forgot the removal would bring back
        done = guest.verify(30, 1)
        assert done.wrong_pages == (0 if may_keep else 1)
        write_page(fd, 30, bytes(PAGE_BYTES))  # and after that only what was seen is right
        assert guest.verify(30, 1).wrong_pages == (1 if may_keep else 0)
        write_page(fd, 30, old if may_keep else bytes(PAGE_BYTES))
        guest.touch(30, write=True)
        assert guest.verify(30, 1).wrong_pages == 0


def test_work_itself_finds_wrong_bytes():
    with Guest(["1M"], mix="random=100") as guest:
        guest.fill()
        guest.corrupt(3)
        guest.work_start(writes=0)
        status = guest.wait_status(lambda status: status.wrong_bytes > 0, 60, "a worker to find the byte")
        assert status.first_wrong is not None
        assert status.first_wrong.page == 3


def test_killed_processes_leave_no_torn_page_and_no_lock():
    with Guest(["256K"], device_workers=2, mix="random=50,text=50") as guest:
        guest.fill()
        guest.work_start(writes=100)
        for _ in range(10):
            made = guest.fork(2) + guest.backend(1)
            guest.wait_work(2000)
            for process in made:
                guest.kill_device(process)
        guest.work_stop()
        assert_all_right(guest)
        assert guest.status().processes == 1


def test_exec_of_a_device_ends_its_part_only():
    with Guest(["1M"]) as guest:
        guest.fill()
        guest.work_start()
        made = guest.fork(2)
        guest.exec_device(made[0])
        entry = next(entry for entry in guest.processes() if entry.process == made[0])
        assert entry.state == "silent"
        guest.work_stop()
        assert guest.verify().wrong_bytes == 0
        guest.kill_device(made[0])
        assert guest.verify().bytes == 2 << 20


def test_fill_is_the_same_for_the_same_seed_and_as_mixed_as_asked():
    pages = []
    for seed in (7, 7, 8):
        with Guest(["1M"], seed=seed, mix="random=20,text=20,same=20,zero=20,untouched=20") as guest:
            guest.fill()
            with memfd_of(guest) as fd:
                pages.append([read_page(fd, page) for page in range(256)])
                blocks = os.fstat(fd).st_blocks
            assert blocks * 512 == guest.memory().resident_bytes < 1 << 20
    assert pages[0] == pages[1] != pages[2]
    zeros = sum(not any(page) for page in pages[0])
    same = sum(page == page[:8] * 512 and any(page) for page in pages[0])
    assert 60 < zeros < 145  # zero and untouched
    assert 25 < same < 80


def test_a_sparse_guest_of_64_gib_costs_only_what_is_used():
    with Guest(["64G"]) as guest:
        guest.fill(first=16_000_000, pages=1000)
        guest.hot(1000, first=16_000_000)
        guest.work_start()
        guest.wait_work(5000)
        guest.work_stop()
        assert guest.verify(15_999_000, 3000, touched=True).wrong_bytes == 0
        assert guest.memory().resident_bytes <= 1000 * PAGE_BYTES


def test_a_hundred_processes():
    with Guest(["1M"]) as guest:
        guest.fill()
        assert len(guest.fork(50)) == 50
        assert len(guest.backend(50)) == 50
        assert_all_right(guest)
        assert guest.status().processes == 101
        pids = [entry.pid for entry in guest.processes()]
    assert not [pid for pid in pids if is_alive(pid)]


def test_killing_the_vmm_ends_all_its_processes():
    with Guest(["1M"]) as guest:
        guest.fork(2)
        guest.fork(1, by=1)
        guest.backend(1)
        with contextlib.ExitStack() as fds:
            pidfds = [os.pidfd_open(entry.pid) for entry in guest.processes()]
            for pidfd in pidfds:
                fds.callback(os.close, pidfd)
            guest.kill()
            for pidfd in pidfds:
                assert select.select([pidfd], [], [], 30)[0]


def test_shrunk_memfd_is_bus_errors_and_the_guest_goes_on():
    with Guest(["1M", "1M"], mix="random=100") as guest:
        guest.fill()
        guest.hostile("shrink", 0, "512K")
        done = guest.verify()
        assert (done.bus_errors, done.wrong_bytes) == (128, 0)
        guest.kernel_io(0, 256, "read")
        assert guest.status().bus_errors == 256
        guest.touch(300, write=True)


def test_hot_set_limits_the_work():
    with Guest(["4M"], mix="random=100") as guest, memfd_of(guest) as fd:
        guest.fill()
        before = [read_page(fd, page) for page in range(1024)]
        guest.hot(4, first=100, stride=256)
        guest.work_start(writes=100)
        guest.wait_work(1000)
        guest.work_stop()
        changed = [page for page in range(1024) if read_page(fd, page) != before[page]]
        assert changed == [100, 356, 612, 868]


def test_rate_limits_the_work_and_idle_uses_no_processor():
    with Guest(["1M"], workers=1) as guest:
        guest.fill()
        guest.work_start(rate=1_000_000_000 // 1_000_000)
        guest.wait_work(20)
        guest.work_stop()
        assert guest.status().operations < 10_000
        before = _cpu_ticks(guest.pid)
        guest.order("status")
        assert _cpu_ticks(guest.pid) - before <= 1


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("nonsense", "unknown order"),
        ("", "an empty order"),
        ("touch 0", "number"),
        ("touch 0 1 sideways", "read|write"),
        ("touch 256 1 read", "no such pages"),
        ("touch 0 257 read", "no such pages"),
        ("touch 0 18446744073709551615 read", "no such pages"),
        ("verify by=3", "by="),
        ("verify pages=x", "not a number"),
        ("remove 0 1 gently", "madvise|"),
        ("work", "work start"),
        ("work start writes=80 kernel=30", "100"),
        ("kill-device 0", "process 0"),
        ("kill-device 9", "No such process"),
        ("exec-device 9", "running process"),
        ("fork 0", "at least 1"),
        ("register", "--socket"),
        ("hostile frown", "hostile"),
    ],
)
def test_bad_orders_are_refused_with_advice(line, advice):
    with Guest(["1M"]) as guest:
        with pytest.raises(GuestError, match=re.escape(advice)):
            guest.order(line)
        assert guest.fill().pages == 256  # and nothing is the worse for it


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ([], "--socket"),
        (["--no-handoff", "--socket", "/x"], "either"),
        (["--no-handoff", "--region", "5000"], "multiple of 4096"),
        (["--no-handoff", "--region", "1M,offset=1"], "offset"),
        (["--no-handoff", "--region", "1M,colour=1"], "memfd= and offset="),
        (["--no-handoff", "--region", "1M,memfd=99"], "less than 64"),
        (["--no-handoff", "--mix", "random=99"], "sum of 100"),
        (["--no-handoff", "--workers", "9"], "1 to 8"),
        (["--no-handoff", "--api", "nobody"], "--api"),
        (["--no-handoff", "--frobnicate"], "frobnicate"),
        (["--no-handoff", "extra"], "extra"),
        (["--socket", "/" + "x" * 108], "107"),
    ],
)
def test_bad_usage_is_one_clear_line(arguments, advice):
    ended = subprocess.run(
        [guest_program(), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert advice in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("regions", "advice"),
    [
        (["1M,memfd=1"], "no region uses memfd 0"),
        (["1M,memfd=0", "1M,memfd=0,offset=512K"], "regions 0 and 1 overlap in memfd 0"),
    ],
)
def test_regions_that_cannot_be_are_one_clear_line(regions, advice):
    words = [word for region in regions for word in ("--region", region)]
    ended = subprocess.run(
        [guest_program(), "--no-handoff", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert advice in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_help_names_every_order_and_option():
    text = subprocess.run([guest_program(), "--help"], capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r'^\t\{ "([a-z-]+)", (?:no|required)_arg', _source("options.c"), re.MULTILINE))
    assert "region" in options
    assert not [option for option in options if f"--{option}" not in text]
    orders = set(re.findall(r'\{ "([a-z-]+)", run_', _source("commands.c")))
    assert "kill-device" in orders
    assert not [order for order in orders if not re.search(rf"\b{order}\b", text)]


def test_end_of_input_ends_the_guest_at_once_with_jobs_running():
    with Guest(["64M"]) as guest:
        guest.start("fill")
        guest.start(touch_order(0, 100))
        assert guest.process is not None
        assert guest.process.stdin is not None
        guest.process.stdin.close()
        assert guest.process.wait(30) == 0


def _source(name):
    return (Path(__file__).resolve().parents[2] / "guest" / name).read_text()


def _cpu_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
