# SPDX-License-Identifier: GPL-2.0-or-later
"""Forty VMs on one host, through vmmswapd and vmmswapctl: every order to all at once, and all monitors killed
at once. At the end every byte of every guest is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bus import missing, run, start, until
from tests.support.many_vms import HostClient, ManyVms
from tests.support.monitor import DEADLINE_S
from vmmswap.config import Config
from vmmswap.names import BUS_NAME, object_path_of

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

COUNT = 40


@contextlib.contextmanager
def all_turns_taken(turns: Path) -> Iterator[None]:
    """As by as many other VMs as may swap out at a time."""
    with contextlib.ExitStack() as files:
        for number in range(Config().swap_outs_max):
            file = files.enter_context((turns / str(number)).open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


async def test_forty_vms_on_one_host(bus, directory):
    with ManyVms(bus, directory, COUNT) as vms:
        async with start(bus, sys.executable, "-m", "vmmswap.host.main"):
            await until(lambda: bus.has_owner(BUS_NAME), DEADLINE_S)
            async with HostClient(bus) as host:
                await all_in_state(host, vms, "Ready")
                assert await listed(bus) == dict.fromkeys(vms.names, "Ready")

                with all_turns_taken(vms.turns):
                    await host.call_all(vms.names, "Enable")
                    statuses = await asyncio.gather(*map(host.status, vms.names))
                    assert [status["Queued"] for status in statuses] == [True] * COUNT
                await signalled(host, vms, "Active")

                await asyncio.to_thread(vms.kill_monitors)
                assert await asyncio.to_thread(vms.wrong_bytes) == 0
                await all_in_state(host, vms, "Active")
                assert await listed(bus) == dict.fromkeys(vms.names, "Active")

                await host.call_all(vms.names, "Disable")
                await signalled(host, vms, "Ready")
                await all_in_state(host, vms, "Ready")
        assert vms.wrong_bytes() == 0


async def all_in_state(host: HostClient, vms: ManyVms, state: str) -> None:
    """As vmmswapd lists them."""

    async def is_so() -> bool:
        return await host.vms() == dict.fromkeys(vms.names, state)

    await host.until(is_so, f"all VMs to be {state}")


async def signalled(host: HostClient, vms: ManyVms, state: str) -> None:
    """The last StatusChanged of each VM said so. None was lost."""
    wanted = {object_path_of(name): state for name in vms.names}
    await host.until(lambda: host.last_states() == wanted, f"StatusChanged of all VMs with {state}")


async def listed(bus: Any) -> dict[str, str]:
    """What `vmmswapctl list` prints: state by name."""
    command = (sys.executable, "-m", "vmmswap.ctl.main", "--bus", bus.address, "list", "--json")
    lines = (await run(*command)).ok.output.splitlines()
    return {row["Name"]: row["State"] for row in map(json.loads, lines)}
