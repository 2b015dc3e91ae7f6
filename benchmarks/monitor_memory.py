# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor's own memory (PSS) beside guests of different sizes, everything swapped out and on disk."""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from pathlib import Path

from vmmswap.ctl.demo_stage import NAME, Stage


def _monitor_pid(folder: Path) -> int:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder / "vm.sock").encode() in words and any(b"vmmswap-monitor" in word for word in words):
            return int(entry.name)
    raise RuntimeError("the monitor does not run")


def _pss_mib(pid: int) -> float:
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024


async def _ctl(stage: Stage, *args: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vmmswap.ctl.main", "--bus", stage.bus_address, *args
    )
    assert await process.wait() == 0, args


async def _measure(guest_mib: int, swap_parent: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=swap_parent) as swap_dir:
        stage = Stage(Path(folder), Path(swap_dir))
        try:
            await stage.start_bus()
            await stage.start_monitor()
            guest = await stage.start_guest([guest_mib])
            await guest.ready()
            await guest.job("fill")
            pid = _monitor_pid(Path(folder))
            before = _pss_mib(pid)
            await _ctl(stage, "enable", NAME)
            await _ctl(stage, "flush", NAME)  # what is compressed on RAM is the guest's
            return {"pss_mib_before": before, "pss_mib_swapped_out": _pss_mib(pid)}
        finally:
            await stage.clear()


def measure(guest_mib: int, swap_parent: Path) -> dict[str, float]:
    """The monitor's PSS in MiB before Enable, and with a guest of guest_mib swapped out to disk."""
    return asyncio.run(_measure(guest_mib, swap_parent))
