# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest with a lot of memory costs, of which little is there or all: its page map, its jobs, and
Status.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.rivals import Figures, ratio, table
from tests.support.bus import PrivateBus
from tests.support.guest import Guest
from tests.support.monitor import Monitor
from vmmswap.bus.client import ClientConnection
from vmmswap.names import MANAGER_INTERFACE, bus_name_of, object_path_of

_CALLS = 200
_RUNS, _RUN_PAGES = 64, 64
_PAGES_PER_GIB = 1 << 18
_LIMIT_S = 900.0


def _page_map_mib(pid: int) -> float:
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if "vmmswap page map" in str(path.readlink()):
                return path.stat().st_blocks * 512 / (1 << 20)
        except FileNotFoundError:
            continue
    raise RuntimeError("the monitor has no page map")


async def _ask(monitor: Monitor, calls: int) -> tuple[list[float], list[float]]:
    """How long Status takes, and a call that only gives the name; both in ms."""
    connection = ClientConnection(monitor.bus.address)
    await connection.connect()
    where = bus_name_of(monitor.name), object_path_of(monitor.name)
    took_ms: tuple[list[float], list[float]] = ([], [])
    try:
        for _ in range(calls):
            for found, interface, member in (
                (took_ms[0], MANAGER_INTERFACE, "Status"),
                (took_ms[1], "org.freedesktop.DBus.Peer", "Ping"),
            ):
                since_s = time.monotonic()
                await connection.call(*where, interface, member)
                found.append(1000 * (time.monotonic() - since_s))
    finally:
        await connection.close()
    return took_ms


def _pss_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


def _touch_us(guest: Guest, runs: range, every: int) -> float:
    """The longest of the page faults of some runs."""
    return max(guest.touch(run * every, _RUN_PAGES).longest_us for run in runs)


async def _touch_beside_status(monitor: Monitor, guest: Guest, runs: range, every: int) -> float:
    asking = asyncio.create_task(_ask(monitor, 1_000_000))
    try:
        return await asyncio.to_thread(_touch_us, guest, runs, every)
    finally:
        asking.cancel()
        await asyncio.wait([asking])


def _measure(bus: PrivateBus, folder: Path, gib: int) -> Figures:
    every = gib * _PAGES_PER_GIB // _RUNS
    options = {"env": {"VMMSWAP_ENGINE": "", "NOTIFY_SOCKET": ""}}
    with (
        Monitor("large", bus, folder, **options) as monitor,  # type: ignore[arg-type]
        Guest([f"{gib}G"], socket=monitor.socket, workers=1) as guest,
    ):
        guest.wait_ready()
        for run in range(_RUNS):
            guest.touch(run * every, _RUN_PAGES, write=True)
        out = monitor.all_out()
        status_ms, ping_ms = asyncio.run(_ask(monitor, _CALLS))
        quiet_us = _touch_us(guest, range(_RUNS // 2), every)
        beside_us = asyncio.run(_touch_beside_status(monitor, guest, range(_RUNS // 2, _RUNS), every))
        found = {
            "page_map_mib": _page_map_mib(monitor.pid),
            "swap_out_ms": float(out["SwapTimeMs"]),
            "status_p50_ms": statistics.median(status_ms),
            "ping_p50_ms": statistics.median(ping_ms),
            "longest_fault_us": quiet_us,
            "longest_fault_beside_status_us": beside_us,
        }
        found["swap_in_ms"] = float(monitor.disable()["SwapTimeMs"])
    return found


def bench(sizes_gib: tuple[int, ...]) -> None:
    """Guests of these sizes, 16 MiB of each in 64 places. Needs root, for a name on a bus of its own."""
    rows = {}
    with PrivateBus() as bus:
        for gib in sizes_gib:
            with tempfile.TemporaryDirectory(prefix="vmmswap-", ignore_cleanup_errors=True) as folder:
                rows[f"{gib} GiB"] = _measure(bus, Path(folder), gib)
    table("A sparse guest: 16 MiB in 64 places", rows)
    largest = rows[f"{sizes_gib[-1]} GiB"]
    ratio(f"Status of the {sizes_gib[-1]} GiB guest, ms", largest["status_p50_ms"], "at most 5")
    ratio(
        "its longest page fault beside Status over without",
        largest["longest_fault_beside_status_us"] / largest["longest_fault_us"],
        "about 1",
    )


def _settled_s(monitor: Monitor, member: str) -> float:
    since_s = time.monotonic()
    monitor.call(member)
    monitor.settled(_LIMIT_S)
    return time.monotonic() - since_s


def _measure_populated(bus: PrivateBus, folder: Path, gib: int) -> Figures:
    every = gib * _PAGES_PER_GIB // _RUNS
    env = {"VMMSWAP_ENGINE": "", "NOTIFY_SOCKET": ""}
    first, second = folder / "first", folder / "second"
    first.mkdir()
    second.mkdir()
    socket = folder / "socket"
    with ExitStack() as parts:
        enter = parts.enter_context
        monitor = enter(Monitor("first", bus, first, "--listen", str(socket), env=env, listen=False))
        guest = enter(Guest([f"{gib}G"], socket=socket))
        guest.wait_ready()
        guest.fill(deadline_s=_LIMIT_S)
        guest.disconnect()  # and so the monitor ends
        monitor.wait_exit()
        monitor = enter(Monitor("full", bus, second, "--listen", str(socket), env=env, listen=False))
        since_s = time.monotonic()
        guest.register()
        monitor.until(lambda: "registered: " in monitor.log, "the VM to be registered")
        found = {"register_ms": 1000 * (time.monotonic() - since_s)}
        found["out_s"] = _settled_s(monitor, "Enable")
        found["page_map_mib"] = _page_map_mib(monitor.pid)
        found["pss_mib"] = _pss_mib(monitor.pid)
        status_ms, _ = asyncio.run(_ask(monitor, _CALLS))
        found["status_p50_ms"] = statistics.median(status_ms)
        found["longest_fault_us"] = _touch_us(guest, range(_RUNS // 2), every)
        found["longest_fault_beside_status_us"] = asyncio.run(
            _touch_beside_status(monitor, guest, range(_RUNS // 2, _RUNS), every)
        )
        found["in_s"] = _settled_s(monitor, "Disable")
        if wrong_bytes := guest.verify(deadline_s=_LIMIT_S).wrong_bytes:
            raise RuntimeError(f"{wrong_bytes} bytes of the guest are wrong")
    return found


def bench_populated(gib: int, swap_dir: Path) -> None:
    """A guest that has all of its memory, which goes out with the default settings."""
    with (
        PrivateBus() as bus,
        tempfile.TemporaryDirectory(prefix="vmmswap-", dir=swap_dir, ignore_cleanup_errors=True) as folder,
    ):
        found = _measure_populated(bus, Path(folder), gib)
    table(f"A guest that has all of its {gib} GiB", {f"{gib} GiB": found})
    ratio("bytes of page map for each page", found["page_map_mib"] * 4 / gib, "at most 12.1")
    ratio(f"Status of the full {gib} GiB guest, ms", found["status_p50_ms"], "at most 5")
