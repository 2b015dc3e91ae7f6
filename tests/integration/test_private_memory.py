# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM hands private memory over and moves it itself; monitors are killed meanwhile."""

from __future__ import annotations

import hashlib
import mmap
import os
import signal
import subprocess

import pytest

from tests.support.bus import missing
from tests.support.monitor import BusError, Monitor
from tests.support.movers import end_mover
from tests.support.private_vmm import PrivateVmm, contents
from tests.support.restarts import restarted
from vmmswap.errors import VmmswapError
from vmmswap.handoff.private import check_kernel

REASON = missing()
if not REASON:
    try:
        check_kernel()
    except VmmswapError as error:
        REASON = error.message
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

SIZE = 8 << 20
PAGES = SIZE // mmap.PAGESIZE
CONTENTS = contents(SIZE)
POINTS = ["move.moved", "move.stored", "move.out"]  # the others: engine/tests/test_private_chaos.c


def digest_with(**pages):
    """Of the contents with pages filled with a byte: p7=1 fills page 7 with ones."""
    changed = bytearray(CONTENTS)
    for name, byte in pages.items():
        start = int(name[1:]) * mmap.PAGESIZE
        changed[start : start + mmap.PAGESIZE] = bytes([byte]) * mmap.PAGESIZE
    return hashlib.sha256(changed).hexdigest()


@pytest.fixture
def monitor(bus, directory):
    with Monitor("web", bus, directory) as running:
        yield running


def test_out_and_in(monitor):
    with PrivateVmm(monitor.socket, SIZE) as vmm:
        status = monitor.all_out()
        assert status["SwapPages"] == PAGES
        assert (status["PinCheck"], status["Mode"], status["Origin"]) == ("move", "live", "hand-off")
        assert vmm.digest() == digest_with()
        assert vmm.write(3, 7) == digest_with(p3=7)
        status = monitor.all_out()
        assert status["SwapPages"] == PAGES
        assert vmm.discard(5) == digest_with(p3=7, p5=0)
        vmm.run_child()
        status = monitor.disable()
        assert (status["State"], status["SwapPages"], status["ResidentPages"]) == (
            "Ready",
            0,
            PAGES - 1,
        )  # zeros take none
        assert vmm.digest() == digest_with(p3=7, p5=0)
        vmm.kill()
        assert monitor.wait_exit() == 0
    assert "is all freed" not in monitor.log
    assert "the VMM has ended: all is freed" in monitor.log


def test_a_vmm_in_a_pid_namespace_of_its_own(monitor):
    """As in a container: its threads have other numbers there."""
    inside = ("unshare", "--pid", "--fork", "--kill-child")
    with PrivateVmm(monitor.socket, SIZE, prefix=inside) as vmm:
        assert monitor.all_out()["SwapPages"] == PAGES
        assert vmm.digest() == digest_with()
        assert monitor.disable()["State"] == "Ready"


def test_more_memory_and_less(monitor):
    with PrivateVmm(monitor.socket, SIZE) as vmm:
        monitor.all_out()
        vmm.grow(1 << 20)
        status = monitor.all_out()
        assert status["SwapPages"] == PAGES + 256
        together = hashlib.sha256(CONTENTS + contents(1 << 20)).hexdigest()
        assert vmm.digest() == together
        monitor.disable()
        assert vmm.shrink() == "shrunk"
        assert monitor.all_out()["SwapPages"] == PAGES
        assert vmm.digest() == digest_with()


def test_refused_while_the_thread_that_moves_is_gone(monitor):
    """Nothing changes then, and what is out is served."""
    with PrivateVmm(monitor.socket, SIZE) as vmm:
        assert monitor.all_out()["SwapPages"] == PAGES
        end_mover(vmm.pid)
        with pytest.raises(BusError, match="has no thread any more that moves its pages"):
            monitor.enable()
        assert monitor.status()["State"] == "Active"
        assert vmm.digest() == digest_with()
        assert monitor.disable()["State"] == "Ready"


@pytest.mark.parametrize("option", ["inherited", "locked"])
def test_refused(monitor, option):
    vmm = PrivateVmm(monitor.socket, SIZE, option)
    reason = {"inherited": "MADV_DONTFORK", "locked": "locked guest memory into RAM"}[option]
    assert vmm.said.startswith("NotSupportedError: ")
    assert reason in vmm.said
    vmm.kill()
    vmm.process.communicate()
    assert monitor.status()["State"] == "Empty" or not monitor.status().get("Pid")


def test_killed_at_each_step(bus, tmp_path):
    """Each life is killed at its point, and the next one goes on. Every byte is looked at by the VMM."""
    config = tmp_path / "vmmswap.conf"
    config.write_text("[Swap]\nIdleSetMax=0\n")  # what is looked at after each swap-out would stay
    with restarted(bus, "--config", str(config)) as lives:
        monitor = lives.start()
        monitor.wait_on_bus()
        with PrivateVmm(monitor.socket, SIZE) as vmm:
            for round_, point in enumerate(POINTS):
                monitor.kill()
                monitor = lives.start({"VMMSWAP_FAILPOINTS": f"{point}=kill@{round_ % 3}"})
                monitor.wait_on_bus()
                if monitor.status()["State"] == "Active":
                    monitor.disable()
                subprocess.run(monitor.call_command("Enable"), check=False, capture_output=True)
                assert lives.await_death(), f"not killed at {point}"
                monitor = lives.start()
                monitor.wait_on_bus()
                assert vmm.digest() == digest_with(), point
                monitor.settled()
                assert monitor.all_out()["SwapPages"] == PAGES
                assert vmm.digest() == digest_with(), point
                monitor.disable()
                assert vmm.digest() == digest_with(), point


def test_the_vmm_dies_while_no_monitor_is_there(bus):
    with restarted(bus) as lives:
        monitor = lives.start()
        monitor.wait_on_bus()
        with PrivateVmm(monitor.socket, SIZE) as vmm:
            monitor.all_out()
            os.kill(monitor.pid, signal.SIGKILL)
            lives.await_death()
            vmm.kill()
        assert lives.start().wait_exit() == 0
