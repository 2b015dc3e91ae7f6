# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal, the bus and the service manager of a running system stand still (SIGSTOP) with memory out."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import installation, service
from tests.support.machine import Machine
from tests.support.service import Service

WATCHDOG_S = 5
LOG = "/usr/lib/vmmswap/vmmswap/log.py"


@pytest.fixture(scope="module")
def host(tree: Path) -> Iterator[Service]:
    if reason := Machine.missing():
        pytest.skip(reason)
    with Machine(binds={installation.INSIDE: str(tree)}) as machine:
        yield service.install(machine)


@contextmanager
def standing_still(host: Service, unit: str) -> Iterator[None]:
    """The main process of a unit is stopped. What is done inside must not need it."""
    pid = host.machine.unit(unit, "MainPID")["MainPID"]
    host.machine.run("kill", "-STOP", pid)
    try:
        yield
    finally:
        host.machine.run("kill", "-CONT", pid)


@contextmanager
def manager_standing_still(host: Service) -> Iterator[None]:
    """The same of PID 1, which only somebody outside can stop."""
    os.kill(host.machine.leader, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(host.machine.leader, signal.SIGCONT)


def test_journal_bus_and_service_manager_stand_still(host: Service) -> None:
    # More of the log may wait than a short test can fill.
    host.machine.sh(
        f"grep -q '^_LIMIT_BYTES = ' {LOG} && sed -i 's/^_LIMIT_BYTES = .*/_LIMIT_BYTES = 4096/' {LOG}"
    )
    host.drop_in("still", f"WatchdogSec={WATCHDOG_S}s")
    with host.guest("still") as guest:
        host.swap_out("still")
        before = host.pid("still")
        with standing_still(host, "systemd-journald.service"):
            while host.status("still")["DroppedMessages"] == 0:
                host.swap_in("still")
                host.swap_out("still")
            with standing_still(host, "dbus.service"), manager_standing_still(host):
                since_s = time.monotonic()
                guest.fork(1)
                assert guest.verify().wrong_bytes == 0
                assert guest.memory().resident_bytes > 16 << 20  # so pages did come back
                host.machine.wait_for(
                    "the watchdog's time to pass twice", lambda: time.monotonic() > since_s + 2 * WATCHDOG_S
                )
                assert guest.verify(by="main").wrong_bytes == 0
        found = host.wait_state("still", "Active")
        assert (found["Restarts"], found["Processes"]) == (0, 2)
        assert host.pid("still") == before
        assert host.machine.unit("vmmswap@still.service", "NRestarts") == {"NRestarts": "0"}
        host.swap_in("still")
        assert guest.verify().wrong_bytes == 0
        messages = [str(entry["MESSAGE"]) for entry in host.machine.journal(VMMSWAP_VM="still")]
        assert any("log messages were dropped: nobody took them" in text for text in messages), messages
