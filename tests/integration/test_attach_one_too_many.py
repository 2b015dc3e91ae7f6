# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach takes a mapping too many: memory that the program works with as with its heap, and no guest's.

It is read and written all the time, by the program and by its system calls, and each byte of it is compared.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.guests.attached import attaching
from tests.integration.test_attach_private import PRIVATE, REASON, traces
from tests.support.attach import DEADLINE_S, Target
from tests.support.restarts import failing

pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

GUEST_BYTES = 16 << 20
WORKING_BYTES = 4 << 20
PAGE = 4096


@pytest.fixture
def service(bus, directory):
    with attaching(bus, directory) as running:
        yield running


def killed_in_a_swap_out(service, target, point):
    """A monitor dies there; the program works on without one, then with its successor."""
    service.monitor.kill()
    monitor = service.start(env=failing(f"{point}=kill@1"))
    subprocess.run(monitor.call_command("Enable"), check=False, capture_output=True)
    monitor.process.wait(DEADLINE_S)
    monitor = service.start()
    target.run_on(2)
    monitor.settled()


def test_a_wrong_byte_is_noticed():
    """Also if it is written just between the program's look and its write, when the next one is."""
    with Target("nanosleep,working", *PRIVATE, "working") as target:
        target.run_on(1)
        with Path(f"/proc/{target.pid}/mem").open("r+b", buffering=0) as memory:
            deadline = time.monotonic() + DEADLINE_S
            while target.wrong == 0:
                assert time.monotonic() < deadline
                memory.seek(target.working_addr + WORKING_BYTES // 2)
                memory.write(b"\xff")
                target.run_on(1)


def test_a_mapping_too_many_does_no_harm(service):
    with Target("nanosleep,memory,working,working-futex", *PRIVATE, "working") as target:
        target.run_on(2)
        before = traces(target)
        spans = [(target.addr, GUEST_BYTES), (target.working_addr, WORKING_BYTES)]
        service.attach(target.pid, regions=[f"{start:x}-{start + size:x}" for start, size in spans])
        for _ in range(2):
            status = service.monitor.enable()
            assert (status["State"], status["TotalPages"]) == (
                "Active",
                (GUEST_BYTES + WORKING_BYTES) // PAGE,
            )
            target.run_on(3)
            assert service.monitor.status()["CopiedPages"] > 0
            assert service.monitor.disable()["State"] == "Ready"
            target.run_on(1)
        for point in ("move.moved", "move.stored", "move.out"):
            killed_in_a_swap_out(service, target, point)
            assert service.monitor.enable()["State"] == "Active"
            target.run_on(2)
            assert target.wrong == 0, target.counters
        service.detach()
        assert (traces(target), target.wrong) == (before, 0), target.counters
        target.run_on(2)
        assert target.wrong == 0, target.counters
