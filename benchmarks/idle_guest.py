# SPDX-License-Identifier: GPL-2.0-or-later
"""Page faults of an idle Linux guest that is out, with and without the pages that it always touches kept."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks import linux_guest
from benchmarks.rivals import Figures, ratio, table
from tests.guests.qemu import KERNEL_OPTIONS
from tests.support.bus import PrivateBus
from tests.support.bus import missing as bus_missing
from tests.support.monitor import Monitor

_CYCLES = 3
_GUESTS = {
    "idle": "",
    # programs that start every ten seconds
    "with services": linux_guest.SERVICES,
}


def bench(window_s: float) -> None:
    """The distribution's kernel, with nothing to do and with a few programs that wake up now and then; QEMU,
    attached to.
    """
    reason = linux_guest.why_not() or bus_missing()
    if reason:
        print(f"\nWithout an idle Linux guest: {reason}")
        return
    rows = {}
    with PrivateBus() as bus:
        for guest, option in _GUESTS.items():
            with linux_guest.booted("-append", f"{KERNEL_OPTIONS} {option}") as vm:
                time.sleep(window_s)  # what has just booted is not idle
                for idle_set_max in ("0", "4M"):
                    settings = f"IdleSetMax={idle_set_max}"
                    rows[f"{guest}, {settings}"] = _measure(bus, vm.pid, settings, window_s)
    table(f"Page faults a minute of an idle Linux guest of {linux_guest.MEMORY_MIB} MiB", rows)
    last = {name: figures[f"cycle_{_CYCLES}"] for name, figures in rows.items()}
    for guest in _GUESTS:
        with_set, without = last[f"{guest}, IdleSetMax=4M"], last[f"{guest}, IdleSetMax=0"]
        ratio(f"{guest}: page faults a minute after the second cycle", with_set, "fewer than 100")
        ratio(
            f"{guest}: page faults a minute, with IdleSetMax=4M over without",
            with_set / max(without, 1),
            "below 1",
        )


def _measure(bus: PrivateBus, pid: int, settings: str, window_s: float) -> Figures:
    """Out, and idle for a while, some times."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="vmmswap-") as folder:
        config = Path(folder) / "vmmswap.conf"
        config.write_text(f"[Swap]\n{settings}\n")
        options = ("--attach", str(pid), "--config", str(config))
        with Monitor("idle", bus, Path(folder), *options, listen=False) as monitor:
            for cycle in range(1, _CYCLES + 1):
                before = monitor.enable()
                since_s = time.monotonic()
                time.sleep(window_s)
                now = monitor.status()
                faults = now["FaultCount"] - before["FaultCount"]
                figures[f"cycle_{cycle}"] = 60 * faults / (time.monotonic() - since_s)
            figures["prefetched_pages"] = now["PrefetchedPages"]
            figures["idle_set_pages"] = now["IdleSetPages"]
            monitor.disable()
            monitor.call("Detach")
            monitor.wait_exit()
    return figures
