# SPDX-License-Identifier: GPL-2.0-or-later
"""Monitors that systemd cannot even execute: a directory of ReadWritePaths= or the program is not there.

systemd never gives a monitor up, because memory may be out, and does not ask whether any is. Where nothing is
kept in the fd store there is none, and a start that failed a few times is ended here.
"""

from __future__ import annotations

import asyncio
import logging
import re

from vmmswap.bus.dbus import Message
from vmmswap.errors import VmmswapError
from vmmswap.host.units import Units
from vmmswap.log import fields

log = logging.getLogger(__name__)

_MONITOR = re.compile(r"vmmswap@(?P<name>.+)\.service")
_FIRST_OF_SYSTEMD = 200  # systemd.exec(5): exit statuses from here on are systemd's own, before it executes
_RESTARTS = 3


class RestartLoops:
    """Ends them as they are heard of."""

    def __init__(self, units: Units) -> None:
        self._units = units
        self._tasks: set[asyncio.Task[None]] = set()
        units.on_job_removed = self._job_removed

    def _job_removed(self, message: Message) -> None:
        _id, _job, unit, result = message.body
        if result == "failed" and _MONITOR.fullmatch(unit):
            task = asyncio.create_task(self._look(unit))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _look(self, unit: str) -> None:
        try:
            found = await self._units.service(unit)
            status = int(found["ExecMainStatus"])
            is_hopeless = (
                found["SubState"] == "auto-restart"
                and status >= _FIRST_OF_SYSTEMD
                and not found["NFileDescriptorStore"]
                and found["NRestarts"] >= _RESTARTS
            )
            if is_hopeless:
                await self._units.stop(unit)
                log.error(
                    "systemd cannot execute %s (exit status %d), and no memory is out: it is not tried again;"
                    " `systemctl status %s` has the reason",
                    unit,
                    status,
                    unit,
                    extra=fields(vmmswap_vm=_name_of(unit)),
                )
        except VmmswapError as error:
            log.warning("cannot look at %s: %s", unit, error.message)


def _name_of(unit: str) -> str:
    match = _MONITOR.fullmatch(unit)
    return match["name"] if match else ""
