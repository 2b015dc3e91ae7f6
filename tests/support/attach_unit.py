# SPDX-License-Identifier: GPL-2.0-or-later
"""attach_target as a unit of a booted machine: a VMM that knows nothing of vmmswap."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.attach import COUNTERS_AT, SOURCE
from tests.support.machine import Machine
from tests.support.programs import built
from tests.support.service import Service

PROGRAM = "/opt/attach-target"
KNOWN = (
    "/opt/qemu-system-test"  # by this name its seccomp filters, the machine's own, are known to be harmless
)


def install_targets(machine: Machine) -> None:
    inside = machine.path(PROGRAM)
    inside.parent.mkdir(exist_ok=True)
    shutil.copy(built(SOURCE, "-static"), inside)
    shutil.copy(inside, machine.path(KNOWN))


class Target:
    """attach_target as a unit of the machine."""

    def __init__(self, machine: Machine, unit: str) -> None:
        self._machine = machine
        self._unit = unit
        self.pid = int(machine.unit(unit, "MainPID")["MainPID"])

    def counters(self) -> tuple[int, int]:
        """Rounds done by the first thread; what was wrong in any."""
        words = self._machine.sh(
            f"od -A n -t u8 -w24 -j {COUNTERS_AT} -N 72 -v /run/{self._unit}"
        ).stdout.split()
        numbers = [int(word) for word in words]
        return numbers[0], sum(numbers[1::3])

    def run_on(self) -> None:
        """AssertionError if something was wrong."""
        before, _ = self.counters()
        self._machine.wait_for("the target to go on", lambda: self.counters()[0] > before + 20)
        assert self.counters()[1] == 0

    def links(self) -> str:
        return self._machine.sh(f"ls -l /proc/{self.pid}/fd").stdout


@contextmanager
def target(host: Service, unit: str, program: str, options: str = "") -> Iterator[Target]:
    """Started as nobody, without rights."""
    machine = host.machine
    machine.sh(f"truncate -s 4096 /run/{unit} && chown nobody /run/{unit}")
    start = f"exec 9<>/run/{unit}; exec {program} 9 32 memory,nanosleep,read {options}"
    machine.run(
        *("systemd-run", "--quiet", f"--unit={unit}", "--uid=nobody", "--property=NoNewPrivileges=yes"),
        *("bash", "-c", start),
    )
    try:
        running = Target(machine, unit)
        machine.wait_for("the target to be ready", lambda: running.counters()[0] > 0)
        yield running
    finally:
        machine.run("systemctl", "stop", unit, check=False)
