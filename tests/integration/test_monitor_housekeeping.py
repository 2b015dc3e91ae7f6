# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of the store when a guest wakes by its page faults alone, without Disable or Trim."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.support.bus import PrivateBus, missing
from tests.support.guest import Guest
from tests.support.monitor import PLAIN, Monitor

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

PAGES = 24 * 256


@pytest.fixture(params=[(), ("RamTierMax=0",), PLAIN], ids=["RAM tier", "disk tier", "plain file"])
def monitor(request):
    directory = Path(tempfile.mkdtemp(prefix="vmmswap-"))
    config = directory / "vmmswap.conf"
    config.write_text("\n".join(["[Swap]", *request.param, ""]))
    with PrivateBus() as bus, Monitor("web", bus, directory, "--config", str(config)) as running:
        running.is_plain = request.param == PLAIN
        running.has_ram_tier = not request.param
        running.is_on_disk = lambda: running.has_ram_tier or running.status()["StoredRamBytes"] == 0
        yield running
    shutil.rmtree(directory)


@pytest.fixture
def guest(monitor):
    with Guest(("16M", "8M"), socket=monitor.socket) as running:
        running.wait_ready()
        running.fill()
        yield running


def test_the_stores_space_comes_back_as_a_guest_writes(monitor, guest):
    status = monitor.enable()
    assert status["StoredPages"] == status["SwapPages"] > PAGES // 2
    assert status["StoredBytes"] >= (status["SwapPages"] * 4096 if monitor.is_plain else 2 << 20)
    guest.fill()
    monitor.until(lambda: monitor.status()["SwapPages"] == 0, "the last page to be counted")
    monitor.until(lambda: monitor.status()["StoredBytes"] < 1 << 16, "the space")
    status = monitor.status()
    assert (status["State"], status["SwapPages"], status["KeptPages"]) == ("Active", 0, 0)
    assert guest.verify().wrong_bytes == 0
    assert monitor.enable()["SwapPages"] > PAGES // 2
    assert guest.verify().wrong_bytes == 0


def test_pages_that_were_only_read_keep_their_copies(monitor, guest):
    monitor.all_out()
    monitor.until(monitor.is_on_disk, "all to be on disk")
    out = monitor.status()
    assert out["KeptPages"] == 0
    assert guest.verify().wrong_bytes == 0
    monitor.until(lambda: monitor.status()["KeptPages"] == out["SwapPages"], "the last page to be counted")
    status = monitor.status()
    assert status["SwapPages"] == 0
    assert status["ResidentPages"] >= status["KeptPages"]
    assert status["StoredPages"] == status["KeptPages"]
    assert status["CompressedBytes"] == out["CompressedBytes"]
    again = monitor.all_out()
    assert (again["SwapPages"], again["KeptPages"]) == (out["SwapPages"], 0)
    same = ["CompressedBytes", "StoredPages"]
    if not monitor.has_ram_tier:  # which moves what does not compress to disk, in its own time
        same.append("WrittenBytes")
    assert [again[key] for key in same] == [out[key] for key in same], "they went out as they were stored"
    assert guest.verify().wrong_bytes == 0
    ready = monitor.disable()
    assert (ready["KeptPages"], ready["StoredPages"]) == (0, 0)
    monitor.until(lambda: monitor.status()["StoredBytes"] == 0, "the space")
