# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmmswapctl demo`: what it tells is true, it notices what goes wrong, and it leaves nothing behind."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.guest import guest_program
from vmmswap.ctl import demo
from vmmswap.ctl.failure import CtlError, ExitStatus

DEADLINE_S = 120
DEMO = [sys.executable, "-m", "vmmswap.ctl.main", "demo", "--size", "64"]


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    if os.geteuid() != 0:
        pytest.skip("needs root, or access to /dev/userfaultfd")
    (tmp_path / "tmp").mkdir()
    return {
        **os.environ,
        "VMMSWAP_GUEST": str(guest_program()),
        "TMPDIR": str(tmp_path / "tmp"),
        "TERM": "dumb",
    }


def processes_of(folder: Path) -> list[str]:
    """Command lines of all processes that were started with a path below the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(str(folder) in word for word in words) and "pytest" not in words[0]:
            found.append(" ".join(words))
    return found


def run_demo(environment, tmp_path, *args: str) -> subprocess.CompletedProcess[str]:
    swap_dir = tmp_path / "swap"
    swap_dir.mkdir(exist_ok=True)
    command = [*DEMO, "--swap-dir", str(swap_dir), *args]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert_nothing_left(tmp_path)
    return done


def assert_nothing_left(tmp_path: Path) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while processes_of(tmp_path) and time.monotonic() < end_s:  # a keeper ends a moment after its monitor
        time.sleep(0.01)
    assert processes_of(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "swap").exists() or list((tmp_path / "swap").iterdir()) == []


def test_for_programs(environment, tmp_path):
    done = run_demo(environment, tmp_path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    at_work, out, awake, _again, back = report["Steps"]
    assert at_work["GuestBytes"] > 40 << 20  # a tenth of the guest's pages are never written
    assert out["GuestBytes"] < at_work["GuestBytes"] // 10
    assert awake["GuestBytes"] > 40 << 20
    assert back["GuestBytes"] > 40 << 20
    assert report["AfterSwapOut"]["State"] == "Active"
    assert report["AfterWakeUp"]["FaultCount"] > 0
    assert report["CheckedBytes"] == 2 * 3 * (64 << 20)
    assert report["WrongBytes"] == 0


def test_for_people(environment, tmp_path):
    done = run_demo(environment, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "every byte verified"
    for step in ("guest at work", "swapped out", "guest awake", "swapped in"):
        assert f"\n{step} " in done.stdout


def test_a_monitor_that_fails_is_told(environment, tmp_path):
    guest = tmp_path / "no-guest"
    guest.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    guest.chmod(0o755)
    done = run_demo({**environment, "VMMSWAP_GUEST": str(guest)}, tmp_path)
    assert (done.returncode, done.stderr) == (1, "vmmswapctl: no-guest ended with status 3: it is broken\n")


def test_a_missing_guest(environment, tmp_path):
    done = run_demo({**environment, "VMMSWAP_GUEST": "/nonexistent"}, tmp_path)
    assert done.returncode == 1
    assert done.stderr == "vmmswapctl: the demo needs nonexistent, which is not installed\n"


def test_a_missing_swap_dir(environment, tmp_path):
    done = run_demo(environment, tmp_path, "--swap-dir", str(tmp_path / "absent"))
    assert done.returncode == 1
    assert "--swap-dir names another directory" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(environment, tmp_path, number):
    (tmp_path / "swap").mkdir()
    command = [*DEMO, "--swap-dir", str(tmp_path / "swap")]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout.readline().startswith("A guest fills its memory")
        run.send_signal(number)
        _, err = run.communicate(timeout=DEADLINE_S)
    assert (run.returncode, err) == (
        130,
        "vmmswapctl: interrupted; the demo's processes and files are gone\n",
    )
    assert_nothing_left(tmp_path)


def test_killed_it_leaves_no_process(environment, tmp_path):
    (tmp_path / "swap").mkdir()
    with subprocess.Popen(
        [*DEMO, "--swap-dir", str(tmp_path / "swap")], env=environment, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout.readline().startswith("A guest fills its memory")
        children = [os.pidfd_open(int(pid)) for pid in children_of(run.pid)]
        assert len(children) == 3
        run.kill()
        run.communicate(timeout=DEADLINE_S)
    for child in children:
        assert select.select([child], [], [], DEADLINE_S)[0] == [child]  # it has ended
        os.close(child)


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


WRONG = {"page": 7, "offset": 16, "expected": 1, "actual": 0, "process": 2}


def test_a_wrong_byte_is_a_failure():
    with pytest.raises(CtlError, match="page 7 at byte 16 process 2 expected 0x01 and found 0x00") as caught:
        demo._check({"wrong_bytes": 1, "wrong_pages": 1, "bus_errors": 0, "first_wrong": WRONG})
    assert caught.value.status is ExitStatus.FAILED
    with pytest.raises(CtlError, match="1 unreadable"):
        demo._check({"wrong_bytes": 0, "wrong_pages": 0, "bus_errors": 1, "first_wrong": None})
    demo._check({"wrong_bytes": 0, "wrong_pages": 0, "bus_errors": 0, "first_wrong": None})
