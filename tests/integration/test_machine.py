# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine that other tests stand on: boots, runs, reports, and leaves nothing behind whatever happens."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import machine_keeper
from tests.support.machine import Machine, MachineError

ROOT = Path(__file__).parents[2]
BOOT_AND_WAIT = """\
import sys
from tests.support.machine import Machine
with Machine() as machine:
    print(machine.leader, machine.settings.name, flush=True)
    sys.stdin.read()
"""


def left_behind(name: str) -> list[str]:
    groups = [str(root / name) for root in machine_keeper.cgroup_roots() if (root / name).exists()]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return groups + [line for line in mounts if "vmmswap-machine" in line]


def test_commands_run_as_units(machine: Machine) -> None:
    assert machine.sh("systemctl is-system-running || systemctl --failed").stdout == "running\n"
    assert "/system.slice/run-" in machine.sh("cat /proc/self/cgroup").stdout
    assert machine.sh("id -un", user="nobody").stdout == "nobody\n"
    assert machine.sh("cat", stdin="hello").stdout == "hello"
    assert machine.sh(
        "grep NoNewPrivs /proc/self/status", properties=["NoNewPrivileges=yes"]
    ).stdout.split() == [
        "NoNewPrivs:",
        "1",
    ]


def test_status_and_output_of_a_failure(machine: Machine) -> None:
    done = machine.sh("echo out; echo err >&2; exit 3", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    with pytest.raises(MachineError, match="exit status 3\nstdout: out"):
        machine.sh("echo out; exit 3")


def test_background_units_and_the_journal(machine: Machine) -> None:
    unit = machine.spawn("echo from the background; exec sleep infinity")
    assert machine.unit(unit, "ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}
    entries = machine.wait_for("its line", lambda: machine.journal(_SYSTEMD_UNIT=unit, _TRANSPORT="stdout"))
    assert [entry["MESSAGE"] for entry in entries] == ["from the background"]
    machine.run("systemctl", "stop", unit)


def test_popen_talks(machine: Machine) -> None:
    with machine.popen("read line; echo got $line", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.communicate("this\n") == ("got this\n", None)
    assert process.returncode == 0


def test_system_bus(machine: Machine) -> None:
    bus = ["org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus"]
    assert machine.call(*bus, "GetConnectionUnixUser", "s", "org.freedesktop.systemd1") == [0]
    assert machine.call(*bus, "NameHasOwner", "s", "org.example", user="nobody") == [False]


def test_files_are_the_hosts_but_writes_are_lost(machine: Machine) -> None:
    assert machine.sh(f"cat {__file__}").stdout == Path(__file__).read_text()
    probe = Path("/usr/written-in-the-machine")
    machine.sh(f"echo x > {probe}")
    assert machine.path(str(probe)).read_text() == "x\n"
    assert not probe.exists()


def test_userfaultfd_is_a_node_of_its_own(machine: Machine) -> None:
    host = Path("/dev/userfaultfd")
    if not host.exists():
        pytest.skip("this kernel has no /dev/userfaultfd")
    before = host.stat()
    machine.sh("chmod 0666 /dev/userfaultfd; chgrp games /dev/userfaultfd")
    inside = machine.path(str(host)).stat()
    assert inside.st_rdev == before.st_rdev
    assert inside.st_mode != before.st_mode == host.stat().st_mode
    machine.sh("chmod 0600 /dev/userfaultfd; chgrp root /dev/userfaultfd")


def test_nothing_is_left(machine: Machine) -> None:
    del machine  # for its skip
    with Machine() as other:
        leader = os.pidfd_open(other.leader)
        other.spawn("trap '' TERM; sleep infinity")
    assert select.select([leader], [], [], 60)[0]  # its cgroup is empty a little earlier
    os.close(leader)
    assert left_behind(other.settings.name) == []


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_the_tests_die(machine: Machine, signum: signal.Signals) -> None:
    del machine  # for its skip
    command = [sys.executable, "-c", BOOT_AND_WAIT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as tests:
        pid, name = tests.stdout.readline().split()
        leader = os.pidfd_open(int(pid))
        tests.send_signal(signum)
        tests.wait()
        assert select.select([leader], [], [], 60)[0]
        os.close(leader)
    wait = Machine()  # not booted: only for its wait_for
    wait.wait_for("the keeper to clean up", lambda: not left_behind(name), timeout_s=60)


def test_a_boot_that_fails_says_why(machine: Machine) -> None:
    del machine  # for its skip
    broken = Machine(binds={"/mnt": "/no/such/directory"})
    with pytest.raises(MachineError, match=r"did not boot: .*\n.*/no/such/directory"):
        broken.start()
    assert left_behind(broken.settings.name) == []
