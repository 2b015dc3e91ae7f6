# SPDX-License-Identifier: GPL-2.0-or-later
"""`make demo GUEST=qemu`: an unmodified QEMU loses its guest's memory and regains it.

Run from the root of the source tree, as root: .venv/bin/python -m tests.guests.demo
"""

from __future__ import annotations

import sys
import tempfile
import textwrap
import time
from pathlib import Path

from tests.guests import qemu
from tests.guests.qemu import KERNEL_DIR, Qemu
from tests.support.bus import PrivateBus
from tests.support.bus import missing as bus_missing
from tests.support.monitor import Monitor
from vmmswap.attach.planting import check_machine
from vmmswap.errors import VmmswapError

FILLED_MIB = 256


def say(text: str) -> None:
    print(text, flush=True)


def mem_available_mib() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))) >> 10


def can_move() -> bool:
    """True if QEMU may have the memory that it has by default."""
    try:
        check_machine()
    except VmmswapError as error:
        say(f"QEMU gets a memfd for memory: {error.message.partition(':')[0]}")
        return False
    say("QEMU has the memory that it has by default, private and anonymous.")
    return True


class Demo:
    def __init__(self, vm: Qemu, monitor: Monitor) -> None:
        self._vm, self._monitor = vm, monitor

    def show(self, what: str, since: float) -> None:
        """One line: what happened, how long it took, where the guest's memory is."""
        status = self._monitor.status()
        out_mib = status["SwapPages"] * status["PageSize"] >> 20
        say(
            f"  {what:<44} {time.monotonic() - since:6.2f} s   guest memory on the host's RAM:"
            f" {self._vm.resident_bytes() >> 20:4} MiB, swapped out: {out_mib:4} MiB,"
            f" host's free memory: {mem_available_mib()} MiB"
        )

    def look_inside(self) -> None:
        """One line: what the guest knows of it all. It answers from a few pages, which come back for that."""
        ticks, memory = self._vm.order("ticks"), self._vm.order("memory")
        free_mib, total_mib = memory.free_kib >> 10, memory.total_kib >> 10
        say(
            f"    the guest sees {free_mib} MiB free of {total_mib}; a thread of its that sleeps 1 ms"
            f" at a time slept {ticks.longest_us / 1000:.1f} ms at most"
        )

    def order(self, order: str, what: str) -> None:
        since = time.monotonic()
        answer = self._vm.order(order)
        self.show(what, since)
        if getattr(answer, "wrong", 0):
            raise SystemExit(f"the guest found {answer.wrong} wrong words: this is a bug: please report it")

    def call(self, member: str, what: str) -> None:
        since = time.monotonic()
        self._monitor.call(member)
        status = self._monitor.settled()
        self.show(what, since)
        if status["State"] == "Failed":
            raise SystemExit(f"{member} failed: {status['Error']}")

    def play(self) -> None:
        self.look_inside()
        self.order("memory", "attached: nothing has changed")
        for turn in ("first", "second"):
            self.call("Enable", f"swapped out, the {turn} time")
            status = self._monitor.status()
            say(f"    the guest's longest pause was {status['PauseUs']} us; it runs on")
            self.look_inside()
            self.order("check", f"the guest has compared {FILLED_MIB} MiB, all right")
            self.order("replay", "and replayed its random writes, all right")
            self.order("scribble on", "it writes again")
            status = self._monitor.status()
            say(
                f"    {status['FaultCount']} page faults, half of them served within"
                f" {status['FaultP50Us']} us, 99 of 100 within {status['FaultP99Us']} us"
            )
        self.call("Enable", "swapped out again")
        self.call("Disable", "swapped in")


def main() -> None:
    if reason := qemu.missing() or bus_missing() or qemu.prepared():
        sys.exit(f"no demo with QEMU here: {reason}")
    accel, why = qemu.accelerator()
    say(f"QEMU with {accel} ({textwrap.shorten(why, 120, placeholder=' ...')}),")
    say(f"with {(KERNEL_DIR / 'package').read_text().strip()} as it is; neither knows of vmmswap.")
    with tempfile.TemporaryDirectory(prefix="vmmswap-") as name, PrivateBus() as bus:
        directory = Path(name)
        with Qemu(directory, memory_mib=640, default_memory=can_move()) as vm:
            vm.order(f"fill {FILLED_MIB}")
            vm.order("scribble on")
            since = time.monotonic()
            monitor = Monitor("demo", bus, directory, "--attach", str(vm.pid), listen=False)
            with monitor:
                say(f"The guest has booted and filled {FILLED_MIB} MiB with values that it knows.")
                say(f"vmmswap-monitor demo --attach {vm.pid}: {time.monotonic() - since:.2f} s")
                Demo(vm, monitor).play()
                monitor.call("Detach")
                monitor.wait_exit()
            vm.order("check")
            say("Detached: QEMU is as it was. The guest powers off.")
            vm.send("off")
            vm.wait_off()


if __name__ == "__main__":
    main()
