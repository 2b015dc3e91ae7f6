# SPDX-License-Identifier: GPL-2.0-or-later
"""What many idle VMs cost a host: memory, processor time and wake-ups of each monitor with its keeper, and
how long the operators' tool and a restart of all monitors take. Needs root: it owns names on a bus.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import memory_parts
from benchmarks.rivals import Figures, ratio, table
from tests.support.bus import PrivateBus
from tests.support.many_vms import HostClient, ManyVms
from tests.support.restarts import keepers
from vmmswap.names import BUS_NAME

_ONE_PAGE = "first=1000 pages=1"  # that no guest has touched since it went out
_SWITCHES = re.compile(r"^voluntary_ctxt_switches:\s+(\d+)", re.MULTILINE)


def _processes(vms: ManyVms) -> Iterator[list[int]]:
    """Of each VM: its monitor and the keeper of that."""
    for monitor in vms.monitors:
        yield [monitor.pid, keepers(monitor)[-1]]


def _smaps_mib(pids: list[int], key: str) -> float:
    texts = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids)
    return sum(int(re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)[1]) for text in texts) / 1024  # type: ignore[index]  # each has it


def _wake_ups(pids: list[int]) -> int:
    """So often has a thread of theirs gone to sleep."""
    found = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += int(_SWITCHES.search((task / "status").read_text())[1])  # type: ignore[index]  # has it
    return found


def _cpu_s(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _list_s(bus: PrivateBus) -> float:
    since_s = time.monotonic()
    command = [sys.executable, "-m", "vmmswap.ctl.main", "--bus", bus.address, "list"]
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - since_s


async def all_are(host: HostClient, vms: ManyVms, state: str) -> None:
    """Return once vmmswapd says so."""

    async def is_so() -> bool:
        return await host.vms() == dict.fromkeys(vms.names, state)

    await host.until(is_so, f"all VMs to be {state}")


async def _measure(vms: ManyVms, bus: PrivateBus, quiet_s: float, idle_s: float) -> tuple[Figures, Figures]:
    """Of all, and what the private dirty memory of one of them is made of."""
    found: Figures = {}
    async with HostClient(bus) as host:
        await all_are(host, vms, "Ready")
        found["start_cpu_s"] = statistics.median(_cpu_s(pids) for pids in _processes(vms))
        await host.call_all(vms.names, "Enable")
        await all_are(host, vms, "Active")
        await asyncio.sleep(quiet_s)
        processes = list(_processes(vms))
        everyone = [pid for pids in processes for pid in pids]
        before = _wake_ups(everyone), _cpu_s(everyone)
        await asyncio.sleep(idle_s)
        found["wake_ups_a_minute"] = (_wake_ups(everyone) - before[0]) / len(vms) / (idle_s / 60)
        found["cpu_percent_of_all"] = 100 * (_cpu_s(everyone) - before[1]) / idle_s
        found["pss_mib"] = statistics.median(_smaps_mib(pids, "Pss") for pids in processes)
        found["private_dirty_mib"] = statistics.median(
            _smaps_mib(pids, "Private_Dirty") for pids in processes
        )
        parts = memory_parts.by_mapping(processes[0])
        found["list_s"] = await asyncio.to_thread(_list_s, bus)
        since_s = time.monotonic()
        await asyncio.to_thread(vms.kill_monitors)
        wrong_bytes = await asyncio.to_thread(vms.wrong_bytes, _ONE_PAGE)
        found["all_served_again_s"] = time.monotonic() - since_s
        wrong_bytes += await asyncio.to_thread(vms.wrong_bytes)
        found["all_read_again_s"] = time.monotonic() - since_s
        if wrong_bytes:
            raise RuntimeError(f"{wrong_bytes} bytes of guests are wrong")
    return found, parts


def bench(count: int, quiet_s: float, idle_s: float) -> None:
    """count VMs of 8 MiB each, all out. quiet_s: how long nothing happens before idle_s are measured."""
    with (
        PrivateBus() as bus,
        tempfile.TemporaryDirectory(prefix="vmmswap-", ignore_cleanup_errors=True) as folder,
        ManyVms(bus, Path(folder), count, "8M", VMMSWAP_ENGINE="") as vms,
        subprocess.Popen([sys.executable, "-m", "vmmswap.host.main"], env=bus.environment) as daemon,
    ):
        try:
            asyncio.run(wait_for_daemon(bus))
            found, parts = asyncio.run(_measure(vms, bus, quiet_s, idle_s))
        finally:
            daemon.kill()
    table(f"{count} idle VMs, all out; medians of each monitor with its keeper", {f"{count} VMs": found})
    ratio("PSS of a VM, MiB", found["pss_mib"], "at most 12")
    ratio("private dirty memory of a VM, MiB", found["private_dirty_mib"], "at most 9")
    ratio("processor time to start a monitor and hand over, s", found["start_cpu_s"], "at most 0.25")
    ratio("all VMs, percent of one processor", found["cpu_percent_of_all"], "at most 0.2 for 100")
    ratio("wake-ups of a VM, in a minute", found["wake_ups_a_minute"], "at most 6")
    ratio("vmmswapctl list, s", found["list_s"], "at most 0.5 for 200")
    ratio(
        "all monitors killed: until a page fault of each guest was answered, s",
        found["all_served_again_s"],
        "at most 10 for 200",
    )
    table("Private dirty memory of one of them, by mapping", {"a VM": parts})
    table("The same of an interpreter that only imports", {"python": memory_parts.by_imports()})


async def wait_for_daemon(bus: PrivateBus) -> None:
    """Return once vmmswapd has its name."""
    while not await bus.has_owner(BUS_NAME):
        await asyncio.sleep(0.05)
