# SPDX-License-Identifier: GPL-2.0-or-later
"""Monitors that share their looks at who has guest memory find each its own VM's."""

from __future__ import annotations

import contextlib
import os

import pytest

from tests.support.bus import missing
from tests.support.guest import Guest
from tests.support.monitor import Monitor

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")


@contextlib.contextmanager
def vm(name, bus, directory):
    """A monitor with a guest whose memory is out."""
    own = directory / name
    own.mkdir()
    env = {"RUNTIME_DIRECTORY": str(directory)}
    with Monitor(name, bus, own, env=env) as monitor, Guest(regions=["4M"], socket=monitor.socket) as guest:
        guest.wait_ready()
        guest.fill()
        monitor.all_out()
        yield monitor, guest


def test_a_late_process_is_found_and_disturbs_its_own_vm_only(bus, directory):
    with vm("one", bus, directory) as (one, guest), vm("other", bus, directory) as (other, second):
        other.until((directory / "fds-1").exists, "a look to be shared")
        with open(f"/proc/{guest.pid}/fd/{guest.status().memfd_fds[0]}", "rb"):  # noqa: PTH123  no path
            one.until(lambda: one.status()["State"] == "Failed", "all to be brought back")
            assert f"process {os.getpid()} (pytest) " in one.status()["Error"]
            assert other.status()["State"] == "Active"
        assert guest.verify().wrong_bytes == 0
        assert second.verify().wrong_bytes == 0
