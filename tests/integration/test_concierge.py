# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/concierge.md: its example daemon and its commands, on a real system bus with systemd's sockets."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.bus import REPOSITORY
from tests.support.host import HOST, installed, recording_vm
from tests.support.machine import Machine
from vmmswap.names import MANAGER_INTERFACE, object_path_of

__all__ = ["installed"]

EXAMPLE = REPOSITORY / "docs" / "examples" / "concierge.py"
TEXT = (REPOSITORY / "docs" / "concierge.md").read_text()
COMMANDS = re.findall(r"^    ((?:busctl|gdbus) .*)$", TEXT, re.MULTILINE)
IDLE = "/run/web.idle"


@pytest.fixture
def concierge(installed: Machine) -> Iterator["subprocess.Popen[str]"]:
    command = f"exec {sys.executable} {EXAMPLE} web --every 0.2 --idle-if 'test -e {IDLE}'"
    with installed.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield process
        installed.sh(f"rm -f {IDLE}; systemctl stop vmmswap@web.socket")
        process.kill()


def expect(process: "subprocess.Popen[str]", *lines: str) -> None:
    assert process.stdout
    for line in lines:
        assert process.stdout.readline() == line + "\n"


def test_the_example_prepares_enables_follows_and_disables(
    installed: Machine,
    concierge: "subprocess.Popen[str]",
) -> None:
    expect(concierge, "prepared /run/vmmswap/web.sock: start the VMM of web now")
    with recording_vm(installed, "web") as unit:
        expect(concierge, "web is at /org/vmmswap/vm/web", "web is Ready, 0 MiB on RAM")
        installed.sh(f"touch {IDLE}")
        expect(concierge, "web is InProgress, 0 MiB on RAM", "web is Active, 0 MiB on RAM")
        installed.sh("systemctl kill --signal=SIGKILL vmmswapd.service")
        installed.sh(f"rm {IDLE}")
        expect(concierge, "web is Ready, 0 MiB on RAM")
        installed.run("systemctl", "stop", unit)
        expect(concierge, "web is gone")
    with recording_vm(installed, "web"):
        expect(concierge, "web is at /org/vmmswap/vm/web", "web is Ready, 0 MiB on RAM")


def test_the_example_says_why_it_may_not(installed: Machine) -> None:
    command = f"{sys.executable} {EXAMPLE} web --idle-if false"
    refused = installed.sh(command, user="nobody", check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("concierge: org.vmmswap.Error.AccessDenied: uid 65534 may not do this")
    assert refused.stderr.count("\n") == 1


def test_the_commands_do_what_they_are_written_for(installed: Machine) -> None:
    assert len(COMMANDS) == 16
    states = []
    with ExitStack() as vms:
        for command in COMMANDS:
            if " monitor " in command:
                installed.sh(f"timeout --signal=INT 0.5 {command}; [ $? = 124 ]")
                continue
            installed.sh(command)
            if " Prepare s " in command:
                assert installed.sh("test -S /run/vmmswap/web.sock").returncode == 0
                vms.enter_context(recording_vm(installed, "web"))
            if command.endswith(("Enable", "Disable")):
                vm = (HOST[0], object_path_of("web"), MANAGER_INTERFACE)
                states.append(installed.call(*vm, "Status")[0]["State"]["data"])
    assert states == ["Active", "Ready"] * 2
