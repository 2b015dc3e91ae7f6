# SPDX-License-Identifier: GPL-2.0-or-later
"""A successor serves page faults first: it loads and does everything else after that."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack

import pytest

from tests.support.bus import missing
from tests.support.guest import Guest
from tests.support.restarts import restarted
from vmmswap.monitor import host_locks, start_turn

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

# Packages with all that is in them.
AFTER_SERVING = (
    *("asyncio.events", "dbus_next", "ssl", "_ssl", "subprocess"),
    *("vmmswap.attach", "vmmswap.bus", "vmmswap.status", "vmmswap.monitor.operations"),
    "vmmswap.engine.reports",
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


def test_it_waits_with_the_rest_while_others_start(bus, tmp_path):
    """It serves meanwhile."""
    with ExitStack() as others, restarted(bus) as service:
        service.start().wait_on_bus()
        with Guest(["4M"], socket=service.monitor.socket) as guest:
            guest.wait_ready()
            guest.fill()
            service.monitor.all_out()
            service.await_death(0)
            for _ in range(start_turn.most()):
                others.callback(
                    os.close, host_locks.first_free(tmp_path, start_turn.most(), start_turn.PREFIX)
                )
            monitor = service.start({"RUNTIME_DIRECTORY": str(tmp_path)})
            monitor.wait_log("waiting for other monitors to start")
            assert guest.verify().wrong_bytes == 0
            others.close()
            monitor.wait_on_bus()
            monitor.until(
                lambda: _is_free(tmp_path), "its turn to be over, so that the next monitor may start"
            )
        assert monitor.wait_exit() == 0


def _is_free(directory):
    with ExitStack() as taken:
        return _take_all(directory, taken)


def _take_all(directory, taken):
    """All places of those that start at a time; False if one is not free."""
    for _ in range(start_turn.most()):
        fd = host_locks.first_free(directory, start_turn.most(), start_turn.PREFIX)
        if fd is None:
            return False
        taken.callback(os.close, fd)
    return True
