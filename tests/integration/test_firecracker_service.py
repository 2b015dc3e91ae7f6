# SPDX-License-Identifier: GPL-2.0-or-later
"""Firecracker's hand-off as an operator sets it up: vmmswap in its unit, the VMM as a user of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import installation, service
from tests.support.firecracker import PAGE, SOURCE, make_snapshot, sum_of
from tests.support.machine import Machine
from tests.support.programs import built
from tests.support.service import Service

PROGRAM = "/opt/firecracker"
SIZE_MIB = 16
PAGES = SIZE_MIB * 256
HOLE = range(1000, 1500)
DATA_PAGES = PAGES - len(HOLE)


@pytest.fixture(scope="module")
def host(tree: Path) -> Iterator[Service]:
    if reason := Machine.missing():
        pytest.skip(reason)
    with Machine(binds={installation.INSIDE: str(tree)}) as machine:
        inside = machine.path(PROGRAM)
        inside.parent.mkdir(exist_ok=True)
        shutil.copy(built(SOURCE, "-static"), inside)
        yield service.install(machine)


class Vmm:
    """firecracker.c as a unit of the machine, run by nobody: orders through a FIFO, answers in a file."""

    def __init__(self, host: Service, name: str) -> None:
        self._machine = host.machine
        self._orders, self._answers = f"/run/{name}.orders", f"/run/{name}.answers"
        self.unit = f"firecracker-{name}"
        self._machine.sh(f"mkfifo {self._orders} && touch {self._answers}")
        self._machine.sh(f"chown nobody {self._orders} {self._answers}")
        program = f"{PROGRAM} /run/vmmswap/{name}.sock new {SIZE_MIB}"
        self._machine.run(
            *("systemd-run", "--quiet", f"--unit={self.unit}", "--uid=nobody"),
            *("--property=SupplementaryGroups=vmmswap", "--property=AmbientCapabilities=CAP_SYS_PTRACE"),
            *("bash", "-c", f"exec 8<>{self._orders} <&8 >{self._answers}; exec {program}"),
        )
        self._said = 0
        assert self.hear() == "sent"

    def say(self, order: str) -> None:
        self._machine.sh(f"echo {order} >{self._orders}")

    def hear(self) -> str:
        """Its next answer."""
        self._said += 1

        def look() -> str | None:
            lines = self._machine.sh(f"cat {self._answers}").stdout.splitlines()
            return lines[self._said - 1] if len(lines) >= self._said else None

        return str(self._machine.wait_for("the VMM's answer", look))

    def sum(self, page: int, pages: int) -> int:
        self.say(f"sum {page} {pages}")
        return int(self.hear())


def test_a_snapshot_is_served_by_the_unit(host: Service) -> None:
    machine = host.machine
    machine.sh("install -d /var/lib/firecracker /etc/vmmswap.conf.d")
    snapshot = make_snapshot(machine.path("/var/lib/firecracker/memory"), PAGES, holes=[HOLE])
    machine.sh("chown nobody /var/lib/firecracker/memory")
    config = machine.path("/etc/vmmswap.conf.d/fc.conf")
    config.write_text("[VM fc]\nSnapshotFile=/var/lib/firecracker/memory\n")
    machine.run("systemctl", "start", "vmmswap@fc.socket")

    refused = Vmm(host, "fc")  # the file is mode 0600 and nobody's
    machine.wait_for("the refusal", lambda: "vmmswap's user may read it" in host.log("fc"))
    machine.run("systemctl", "stop", refused.unit)
    machine.sh("rm /run/fc.orders /run/fc.answers")

    machine.sh("chown root /var/lib/firecracker/memory")  # and not whoever may hand a VM over reads it then
    refused = Vmm(host, "fc")
    machine.wait_for("the refusal", lambda: "uid 65534 may not read SnapshotFile=" in host.log("fc"))
    machine.run("systemctl", "stop", refused.unit, "vmmswap@fc.service")
    machine.sh("rm /run/fc.orders /run/fc.answers")
    config.write_text("[VM fc]\nSnapshotFile=/var/lib/firecracker/memory\nOwner=nobody\n")

    vmm = Vmm(host, "fc")
    host.wait_state("fc", "Active")
    assert vmm.sum(500, 100) == sum_of(snapshot[500 * PAGE : 600 * PAGE])
    machine.wait_for("the count", lambda: host.status("fc")["CopiedPages"] == 100)
    status = host.status("fc")
    assert status["SwapPages"] == DATA_PAGES - 100
    assert 0 < status["ResidentPages"] <= 100 + 96  # test_firecracker.py: INEXACT
    pid = host.pid("fc")
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "vmmswap@fc.service")
    assert vmm.sum(0, PAGES) == sum_of(snapshot)
    assert host.pid("fc") != pid
    assert host.wait_state("fc", "Active")["Restarts"] == 1
    host.swap_in("fc")
    machine.run("systemctl", "stop", "vmmswap@fc.service")
    assert vmm.sum(0, PAGES) == sum_of(snapshot)
    machine.run("systemctl", "stop", vmm.unit, "vmmswap@fc.socket")
