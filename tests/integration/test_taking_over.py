# SPDX-License-Identifier: GPL-2.0-or-later
"""A successor serves page faults first: it loads and does everything else after that."""

from __future__ import annotations

import re

import pytest

from tests.support.bus import missing
from tests.support.guest import Guest
from tests.support.restarts import restarted

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

# Packages with all that is in them.
AFTER_SERVING = (
    *("asyncio.events", "dbus_next", "ssl", "_ssl", "subprocess"),
    *("vmmswap.attach", "vmmswap.bus", "vmmswap.status", "vmmswap.monitor.operations"),
    *(f"vmmswap.handoff.{name}" for name in ("messages", "receiver", "requests", "server", "session")),
    *(f"vmmswap.monitor.{name}" for name in ("monitor", "registration", "served", "start")),
)
_IMPORTED = re.compile(r"^import time: +\d+ \| +\d+ \| +(\S+)$", re.MULTILINE)


def test_what_a_successor_has_loaded_when_it_serves(bus, tmp_path):
    """The guest of each waits for that, and where all monitors of a host were killed it waits for all. The
    interpreter itself reports each import.
    """
    going_on = tmp_path / "going-on"
    with restarted(bus) as service:
        service.start().wait_on_bus()
        with Guest(["4M"], socket=service.monitor.socket) as guest:
            guest.wait_ready()
            guest.fill()
            service.monitor.all_out()
            service.await_death(0)
            before = len(service.monitor.log)
            held = {"VMMSWAP_PYTHON_FAILPOINTS": f"recovery.served=until:{going_on}"}
            monitor = service.start(held | {"PYTHONPROFILEIMPORTTIME": "1"})
            assert guest.verify().wrong_bytes == 0  # it serves
            loaded = set(_IMPORTED.findall(monitor.log[before:]))
            going_on.touch()
            monitor.wait_on_bus()
            later = set(_IMPORTED.findall(monitor.log[before:])) - loaded
        assert monitor.wait_exit() == 0
    assert "vmmswap.engine.engine" in loaded
    assert not {name for name in loaded for part in AFTER_SERVING if f"{name}.".startswith(f"{part}.")}
    assert {"asyncio.events", "vmmswap.monitor.monitor", "vmmswap.bus.connection"} <= later
