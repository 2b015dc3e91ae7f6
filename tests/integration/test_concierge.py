# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/concierge.md's example daemon, on a real system bus with systemd's sockets."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.bus import REPOSITORY
from tests.support.host import installed, recording_vm
from tests.support.machine import Machine

__all__ = ["installed"]

EXAMPLE = REPOSITORY / "docs" / "examples" / "concierge.py"
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
