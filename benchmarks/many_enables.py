# SPDX-License-Identifier: GPL-2.0-or-later
"""Many VMs that are told to go out at the same moment, on one disk. Needs root: they own names on a bus."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.many_vms import all_are, wait_for_daemon
from benchmarks.rivals import Figures, ratio, table
from tests.support.bus import PrivateBus
from tests.support.many_vms import HostClient, ManyVms

_TO_DISK = "[Swap]\nIdleSetMax=0\nRamTierMax=0\nDiskTierCompression=none\nEncryption=no\n"


async def _measure(vms: ManyVms, bus: PrivateBus) -> Figures:
    found: Figures = {}
    async with HostClient(bus) as host:
        await all_are(host, vms, "Ready")
        for key, member, state in (
            ("all_out_s", "Enable", "Active"),
            ("all_in_s", "Disable", "Ready"),
        ):
            since_s = time.monotonic()
            await host.call_all(vms.names, member)
            await all_are(host, vms, state)
            found[key] = time.monotonic() - since_s
    if wrong_bytes := await asyncio.to_thread(vms.wrong_bytes):
        raise RuntimeError(f"{wrong_bytes} bytes of guests are wrong")
    return found


def _run(count: int, size: str, swap_dir: Path, at_once: int) -> Figures:
    with (
        PrivateBus() as bus,
        tempfile.TemporaryDirectory(prefix="vmmswap-", dir=swap_dir, ignore_cleanup_errors=True) as folder,
    ):
        vms = ManyVms(bus, Path(folder), count, size, VMMSWAP_ENGINE="")
        vms.config.write_text(f"{_TO_DISK}SwapOutsMax={at_once}\n")
        with (
            vms,
            subprocess.Popen([sys.executable, "-m", "vmmswap.host.main"], env=bus.environment) as daemon,
        ):
            try:
                asyncio.run(wait_for_daemon(bus))
                return asyncio.run(_measure(vms, bus))
            finally:
                daemon.kill()


def bench(count: int, size: str, swap_dir: Path) -> None:
    """count VMs of this size, raw pages to swap_dir, with so many swap-outs at a time."""
    rows = {f"{at_once} at a time": _run(count, size, swap_dir, at_once) for at_once in (1, 4, count)}
    table(f"{count} Enables at once, {size} each, {swap_dir}", rows)
    out_s = {name: figures["all_out_s"] for name, figures in rows.items()}
    one, default, all_at_once = out_s.values()
    ratio("until all are out, 4 at a time (the default) over 1", default / one, "at most 1")
    ratio("the same over all at a time", default / all_at_once, "at most 1")
