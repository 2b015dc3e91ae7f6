# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages that come back of an idle Linux guest that is out, with and without the pages that it always touches
kept.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import linux_guest
from benchmarks.rivals import Figures, ratio, table
from tests.guests.qemu import KERNEL_OPTIONS
from tests.support.bus import PrivateBus
from tests.support.bus import missing as bus_missing
from tests.support.monitor import Monitor

_CYCLES = 5
_LEARNING_CYCLES = 2  # what an idle guest touches is known after so many
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
    table(f"Pages a minute that come back of an idle Linux guest of {linux_guest.MEMORY_MIB} MiB", rows)
    for guest in _GUESTS:
        with_set, without = rows[f"{guest}, IdleSetMax=4M"], rows[f"{guest}, IdleSetMax=0"]
        ratio(f"{guest}: page faults a minute after the second cycle", with_set["faults"], "fewer than 100")
        ratio(
            f"{guest}: pages that come back, with IdleSetMax=4M over without",
            with_set["back"] / max(without["back"], 1),
            "below 1",
        )


def _measure(bus: PrivateBus, pid: int, settings: str, window_s: float) -> Figures:
    """Out, and idle for a while, some times.

    cycle_N: how many pages a minute came back, by page faults and ahead of them: a replay hides page faults,
    and brings back what nobody may need. faults, back: medians of the cycles in which the idle set is known.
    """
    cycles: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="vmmswap-") as folder:
        config = Path(folder) / "vmmswap.conf"
        config.write_text(f"[Swap]\n{settings}\n")
        options = ("--attach", str(pid), "--config", str(config))
        with Monitor("idle", bus, Path(folder), *options, listen=False) as monitor:
            for _ in range(_CYCLES):
                cycles.append(_one_cycle(monitor, window_s))
            now = monitor.status()
            monitor.disable()
            monitor.call("Detach")
            monitor.wait_exit()
    known = cycles[_LEARNING_CYCLES:]
    return {
        **{f"cycle_{number}": figures["back"] for number, figures in enumerate(cycles, 1)},
        **{name: statistics.median(figures[name] for figures in known) for name in ("faults", "back")},
        "idle_set_pages": now["IdleSetPages"],
        "prefetched_pages": now["PrefetchedPages"],
        "wasted_pages": now["PrefetchWastedPages"],
    }


def _one_cycle(monitor: Monitor, window_s: float) -> Figures:
    before = monitor.enable()
    since_s = time.monotonic()
    time.sleep(window_s)
    now = monitor.status()
    minutes = (time.monotonic() - since_s) / 60
    faults, ahead = (now[name] - before[name] for name in ("FaultCount", "PrefetchedPages"))
    return {"faults": faults / minutes, "back": (faults + ahead) / minutes}
