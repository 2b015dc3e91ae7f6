# SPDX-License-Identifier: GPL-2.0-or-later
"""A real Linux guest that wakes up: the kernel's swap has no access to it, so its only rival is itself."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.rivals import Figures, in_turns, medians, paired, ratio, table
from tests.guests.qemu import Qemu, missing, prepared
from tests.support.bus import PrivateBus
from tests.support.bus import missing as bus_missing
from tests.support.monitor import Monitor

_MEMORY_MIB = 512
_SETTLE_S = 3  # until a wake-up is over, and the guest idle again
_TIERS = {"RAM tier": "RamTierMax=400M", "disk tier": "RamTierMax=0"}
_MODES = {"page faults alone": "WakePrefetch=no", "replay": "WakePrefetch=yes"}


def bench(mib: int, swap_dir: Path, rounds: int) -> None:
    """Time to sum memory of the guest, which runs under QEMU and is attached to."""
    reason = missing() or prepared() or bus_missing()
    if reason:
        print(f"\nWithout a Linux guest that wakes up: {reason}")
        return
    with tempfile.TemporaryDirectory() as folder, Qemu(Path(folder), memory_mib=_MEMORY_MIB) as vm:
        vm.order(f"fill {mib}")
        for store in _TIERS:
            _bench_store(vm, mib, swap_dir, rounds, store)


def _bench_store(vm: Qemu, mib: int, swap_dir: Path, rounds: int, store: str) -> None:
    rivals: dict[str, Callable[[], Figures]] = {"resident": partial(_resident, vm)}
    with PrivateBus() as bus:
        for mode, wake in _MODES.items():
            rivals[mode] = partial(_out, bus, vm, swap_dir, f"{_TIERS[store]}\n{wake}")
        runs = in_turns(rivals, rounds)
    table(f"A Linux guest of {_MEMORY_MIB} MiB that sums {mib} MiB, {store}", medians(runs))
    for mode in _MODES:
        over = paired(runs, (mode, "second_ms"), ("resident", "second_ms"))
        ratio(f"second wake-up, {mode} over never out", over, "as near to 1 as can be")
    ratio(
        "second wake-up, replay over page faults alone",
        paired(runs, ("replay", "second_ms"), ("page faults alone", "second_ms")),
        "below 1",
    )


def _sum_ms(vm: Qemu) -> float:
    since_s = time.monotonic()
    wrong = vm.order("check").wrong
    took_ms = 1000 * (time.monotonic() - since_s)
    assert wrong == 0, "the guest found wrong bytes"
    return took_ms


def _resident(vm: Qemu) -> Figures:
    return {"first_ms": _sum_ms(vm), "second_ms": _sum_ms(vm)}


def _out(bus: PrivateBus, vm: Qemu, swap_dir: Path, settings: str) -> Figures:
    """Out twice; at the first wake-up nothing is known yet."""
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="vmmswap-", dir=swap_dir)))
        config = folder / "vmmswap.conf"
        # what a guest touches within seconds of a swap-out stays, or is left to page faults, to learn of it
        config.write_text(f"[Swap]\n{settings}\nIdleSetMax=0\n")
        options = ("--attach", str(vm.pid), "--config", str(config))
        monitor = undo.enter_context(Monitor("wakes", bus, folder, *options, listen=False))
        first_ms = _sum_once_out(monitor, vm)
        second_ms = _sum_once_out(monitor, vm)
        status = monitor.status()
        monitor.disable()
        monitor.call("Detach")
        monitor.wait_exit()
    return {
        "first_ms": first_ms,
        "second_ms": second_ms,
        "faults": status["FaultCount"],
        "prefetched_pages": status["PrefetchedPages"],
    }


def _sum_once_out(monitor: Monitor, vm: Qemu) -> float:
    status = monitor.enable()
    assert status["State"] == "Active", monitor.log
    took_ms = _sum_ms(vm)
    time.sleep(_SETTLE_S)
    return took_ms
