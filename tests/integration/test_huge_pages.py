# SPDX-License-Identifier: GPL-2.0-or-later
"""On a kernel that fills what is swapped out with zeros when it makes huge pages (before 6.4).

Memory leaves only where nobody can have it do that. tests/kernels runs this on such a kernel.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

import pytest

from tests.support.attach import Target
from tests.support.bus import missing
from tests.support.guest import Guest
from tests.support.monitor import BusError, Monitor
from vmmswap.monitor.mappers import collapse

REASON = missing()
pytestmark = [
    pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing"),
    pytest.mark.skipif(
        not REASON and not collapse.kernel_fills_holes(), reason="this kernel leaves holes as they are"
    ),
]
own_kernel = pytest.mark.skipif(
    not os.environ.get("VMMSWAP_OWN_KERNEL"), reason="needs a kernel of its own (tests/kernels)"
)

SETTING = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_SYS_PROCESS_MADVISE = 440
_MADV_COLLAPSE = 25
_CHUNK = 2 << 20
_libc = ctypes.CDLL(None, use_errno=True)


def guest_mappings(pid: int) -> list[tuple[int, int]]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if "/memfd:guest" in line]
    return [(int(start, 16), int(end, 16)) for start, end in spans]


def collapse_all(pid: int) -> int:
    """What root can do to any process. The chunks that were collapsed, or had their holes filled."""
    pidfd = os.pidfd_open(pid)
    asked = 0
    try:
        for start, end in guest_mappings(pid):
            for addr in range(-(-start // _CHUNK) * _CHUNK, end - _CHUNK + 1, _CHUNK):
                vector = ctypes.create_string_buffer(struct.pack("QQ", addr, _CHUNK))
                _libc.syscall(_SYS_PROCESS_MADVISE, pidfd, vector, 1, _MADV_COLLAPSE, 0)
                asked += 1
    finally:
        os.close(pidfd)
    return asked


def test_refused_where_huge_pages_are_allowed(bus, directory) -> None:
    with Monitor("web", bus, directory) as monitor, Guest(options=["--huge"], socket=monitor.socket) as guest:
        guest.wait_ready()
        guest.fill()
        with pytest.raises(BusError, match="fills what is swapped out with zeros") as refused:
            monitor.call("Enable")
        assert "echo deny >/sys/kernel/mm/transparent_hugepage/shmem_enabled" in str(refused.value)
        assert monitor.status()["State"] == "Ready"
        assert guest.verify().wrong_bytes == 0


def test_nobody_can_fill_memory_without_huge_pages(bus, directory) -> None:
    with Monitor("web", bus, directory) as monitor, Guest(socket=monitor.socket) as guest:
        guest.wait_ready()
        guest.fill()
        assert monitor.enable()["State"] == "Active", monitor.log
        guest.touch(0, 1)  # a chunk that is empty is never collapsed
        before = monitor.status()["ResidentPages"]
        assert collapse_all(guest.pid) > 0
        assert monitor.status()["ResidentPages"] == before
        assert guest.verify().wrong_bytes == 0


def test_an_attached_process_has_them_forbidden(bus, directory) -> None:
    with Target("memory,nanosleep") as target:
        target.run_on(1)
        with Monitor("web", bus, directory, "--attach", str(target.pid), listen=False) as monitor:
            assert monitor.enable()["State"] == "Active", monitor.log
            assert collapse_all(target.pid) > 0
            target.run_on(20)
            assert monitor.disable()["State"] == "Ready"
            monitor.call("Detach")
            assert monitor.wait_exit() == 0
        assert target.wrong == 0


@own_kernel
def test_a_machine_that_denies_them_may_not_stop_to(bus, directory) -> None:
    with Monitor("web", bus, directory) as monitor, Guest(options=["--huge"], socket=monitor.socket) as guest:
        guest.wait_ready()
        guest.fill()
        SETTING.write_text("deny")
        try:
            assert monitor.enable()["State"] == "Active", monitor.log
            collapse_all(guest.pid)
            SETTING.write_text("never")
            monitor.until(lambda: monitor.status()["State"] == "Failed", "its end")
            assert "fills what is swapped out with zeros" in monitor.status()["Error"]
            assert monitor.status()["SwapPages"] == 0
        finally:
            SETTING.write_text("never")
        assert guest.verify().wrong_bytes == 0
