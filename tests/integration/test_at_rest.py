# SPDX-License-Identifier: GPL-2.0-or-later
"""What a monitor costs whose VM was handed over, went out and came back, and needed nothing special: what it
has loaded, and how often it wakes up.

There is one monitor for each VM, and what it imports is most of its memory.
"""

from __future__ import annotations

import json
import re
import sys

import pytest

from tests.support.bus import missing
from tests.support.guest import Guest
from tests.support.monitor import Monitor
from tests.support.unit_like import UnitLike

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

# Packages with all that is in them. Python itself brings what asyncio imports, whether we need it or not.
FOR_COMMAND_LINES = ("argparse", "gettext", "optparse", "rich", "vmmswap.monitor.command_line")
FOR_CRYPTOGRAPHY = ("_ssl", "secrets", "hashlib", "_hashlib", "hmac", "random")
FOR_OTHERS = ("vmmswap.ctl", "vmmswap.host", "vmmswap.handoff.client", "ptrace", "systemd.journal")
FOR_THE_NETWORK = ("http", "email", "urllib.request", "xml", "pyexpat")
FOR_TOOLS = ("platform", "shutil", "tempfile", "unittest", "doctest", "pdb", "pickle", "multiprocessing")
OF_THE_DBUS_LIBRARY = tuple(
    f"dbus_next.{name}" for name in ("aio", "glib", "introspection", "message_bus", "proxy_object", "service")
)
FOR_ATTACH = (
    *(f"vmmswap.attach.{name}" for name in ("attach", "memory", "target", "hold", "plant", "remote_call")),
    *(f"vmmswap.monitor.mappers.{name}" for name in ("attached", "hotplug", "added_back_ends")),
    "vmmswap.monitor.qmp",
)
NOT_AT_REST = (
    *FOR_COMMAND_LINES,
    *FOR_CRYPTOGRAPHY,
    *FOR_OTHERS,
    *FOR_THE_NETWORK,
    *FOR_TOOLS,
    *OF_THE_DBUS_LIBRARY,
    *FOR_ATTACH,
)

_IMPORTED = re.compile(r"^import time: +\d+ \| +\d+ \| +(\S+)$", re.MULTILINE)


def test_a_monitor_at_rest_has_loaded_only_what_it_needs(bus, directory):
    """The interpreter itself reports each import, also those that come later."""
    with (
        UnitLike("web", bus, directory, "-X", "importtime") as monitor,
        Guest(regions=["4M"], socket=monitor.socket) as guest,
    ):
        guest.wait_ready()
        guest.fill()
        monitor.all_out()
        assert guest.verify().wrong_bytes == 0
        monitor.disable()
        loaded = set(_IMPORTED.findall(monitor.log))
    assert "vmmswap.monitor.served" in loaded
    assert not {name for name in loaded for part in NOT_AT_REST if f"{name}.".startswith(f"{part}.")}


QUIET_S = 3600
TIMERS_PER_MINUTE = 2  # the watches' common beat, with some that are older than the quiet
JOBS_PER_MINUTE = 2  # all that the watches look at on a thread, with some that are older than the quiet


LOOKS_PER_HOUR = 15  # of all watches, until the first glances have shown twice the same


@pytest.mark.parametrize("is_shared", [True, False])
def test_an_idle_vm_hardly_wakes_its_monitor(bus, directory, is_shared):
    """An hour of the monitor's own clock, which leaps from timer to timer. As from its unit it has a
    directory that all monitors share, and its watches need not look while a glance shows nothing new.
    """
    file = directory / "leap"
    program = (sys.executable, "-m", "tests.support.leaping_loop", str(file))
    env = {"RUNTIME_DIRECTORY": str(directory) if is_shared else ""}
    with (
        Monitor("web", bus, directory, program=program, env=env) as monitor,
        Guest(regions=["4M"], socket=monitor.socket) as guest,
    ):
        guest.wait_ready()
        guest.fill()
        monitor.all_out()
        for state in ("Active", "Ready"):
            assert monitor.settled()["State"] == state
            passed = hour(monitor, file)
            assert 0 < passed["timers"] < QUIET_S / 60 * TIMERS_PER_MINUTE, f"{state}: {passed['by']}"
            assert 0 < passed["jobs"] < QUIET_S / 60 * JOBS_PER_MINUTE, state
            if is_shared:
                assert passed["looks"] < LOOKS_PER_HOUR, f"{state}: {passed}"
            monitor.disable()
        assert guest.verify().wrong_bytes == 0


def hour(monitor, file):
    """Let QUIET_S pass. Returns what leaping_loop.py counts."""
    file.with_suffix(".new").write_text(str(QUIET_S))
    file.with_suffix(".new").rename(file)
    monitor.until(lambda: file.read_text().startswith("{"), "an hour to pass")
    passed = json.loads(file.read_text())
    file.unlink()
    return passed
