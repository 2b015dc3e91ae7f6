# SPDX-License-Identifier: GPL-2.0-or-later
"""A monitor at its limits on the disk: what does not go out stays on RAM, and the guest notices nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.bus import PrivateBus, missing
from tests.support.guest import Guest
from tests.support.monitor import PLAIN, Monitor

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

MIB = 1 << 20


@pytest.mark.parametrize(
    ("setting", "limit"), [("DiskTierMax=4M", "disk-tier"), ("DiskKeepFree=100%", "no-space")]
)
@pytest.mark.parametrize("lines", [(), PLAIN], ids=["tiers", "plain"])
def test_a_swap_out_stops_at_the_limit(
    bus: PrivateBus, directory: Path, setting: str, limit: str, lines: tuple[str, ...]
) -> None:
    config = directory / "vmmswap.conf"
    config.write_text("\n".join(["[VM web]", setting, *lines, ""]))
    with (
        Monitor("web", bus, directory, "--config", str(config)) as monitor,
        Guest(("16M",), socket=monitor.socket, mix="random=100") as guest,
    ):
        guest.wait_ready()
        guest.fill()
        monitor.call("Enable")
        status = monitor.settled()
        assert (status["State"], status["LimitedBy"], status["Error"]) == ("Active", limit, "")
        [line] = [line for line in monitor.log.splitlines() if "swap-out stopped at a limit" in line]
        assert setting.partition("=")[0] + "=" in line
        assert status["StoredDiskBytes"] <= 4 * MIB
        assert guest.verify().wrong_bytes == 0
        monitor.call("Disable")
        assert monitor.settled()["State"] == "Ready"
        guest.kill()
        assert monitor.wait_exit() == 0
