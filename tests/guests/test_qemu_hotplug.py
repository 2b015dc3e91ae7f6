# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU whose guest is given memory while it runs, uses it, and gives it back: vmmswap is told nothing."""

from __future__ import annotations

import time

import pytest

from tests.guests import qemu
from tests.guests.attached import MIB, check_guest, enabled
from tests.guests.qemu import Qemu
from tests.support.bus import missing as bus_missing

REASON = qemu.missing() or bus_missing()
pytestmark = [
    pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing"),
    pytest.mark.slow,
]

BOOTED_MIB = 256
PLUGGED_MIB = 256
PAGES_PER_MIB = 256


def until(condition, what):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_plugged_used_and_unplugged(service, directory):
    with Qemu(directory, "-m", "slots=1,maxmem=1G", memory_mib=BOOTED_MIB) as vm:
        service.attach(vm.pid)
        monitor = service.monitor
        enabled(monitor)
        before_kib = vm.order("memory").total_kib

        vm.qmp(
            "object-add",
            **{"qom-type": "memory-backend-memfd"},
            id="more",
            size=PLUGGED_MIB * MIB,
            share=True,
        )
        vm.qmp("device_add", driver="pc-dimm", id="dimm", memdev="more")
        until(
            lambda: vm.order("memory").total_kib > before_kib + PLUGGED_MIB * 900,
            "the guest has no more memory",
        )
        vm.order("fill 300")  # more than it had
        vm.order("scribble on")
        for _ in range(2):
            status = enabled(monitor)
            assert status["TotalPages"] == (BOOTED_MIB + PLUGGED_MIB) * PAGES_PER_MIB
            assert status["ResidentPages"] < 300 * PAGES_PER_MIB / 4
            check_guest(vm)
        monitor.kill()
        monitor = service.start()
        check_guest(vm)
        enabled(monitor)
        check_guest(vm)

        vm.order("empty")
        assert monitor.disable()["State"] == "Ready"
        vm.qmp("device_del", id="dimm")
        until(lambda: not vm.qmp("query-memory-devices"), "the guest does not let its memory go")
        vm.qmp("object-del", id="more")
        monitor.until(
            lambda: monitor.status()["TotalPages"] == BOOTED_MIB * PAGES_PER_MIB, "the memory to be forgotten"
        )
        vm.order("fill 64")
        enabled(monitor)
        assert vm.order("check").wrong == 0
        service.detach()
        assert vm.order("check").wrong == 0
