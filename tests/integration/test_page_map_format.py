# SPDX-License-Identifier: GPL-2.0-or-later
"""Page maps of every released format: read, and those of other formats refused with nothing changed."""

import json
import os
import struct
from pathlib import Path

import pytest

from tests.fixtures.make_page_map import PAGE, contents, dump, load, wait_job
from tests.support.bus import PrivateBus, missing
from tests.support.guest import Guest
from tests.support.restarts import restarted
from vmmswap.engine import Engine, EngineConfig, TierFds, Tiers
from vmmswap.errors import VmmswapError

FIXTURES = sorted((Path(__file__).parents[1] / "fixtures").glob("page_map_v*.json"))
VERSION_OFFSET = 8


class Left:
    """What a dead engine of that version left, as files."""

    def __init__(self, path: Path, directory: Path) -> None:
        self.record = json.loads(path.read_text())
        self.page_map = self._load("page map", self.record["page_map"])
        store = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
        self.store = load(self.record["store"]["data"], self.record["store"]["size"], store)
        self.memfds = [self._load("guest", memfd) for memfd in self.record["memfds"]]
        self.tiers = {}
        if self.record["version"] > 1:
            disk = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
            self.tiers = {name: self._load(name, self.record[name]) for name in ("segments", "ram", "key")}
            self.tiers["disk"] = load(self.record["disk"]["data"], self.record["disk"]["size"], disk)

    @staticmethod
    def _load(name: str, record: dict) -> int:
        return load(record["data"], record["size"], os.memfd_create(name))

    def engine(self, directory: Path) -> Engine:
        tiers = Tiers(1 << 30) if self.tiers else None
        config = EngineConfig(directory, fault_threads=1, workers=1, tiers=tiers)
        tier_fds = TierFds(**self.tiers)
        return Engine(config, page_map_fd=self.page_map, store_fd=self.store, tier_fds=tier_fds)

    @property
    def fds(self) -> tuple[int, ...]:
        return (self.page_map, self.store, *self.tiers.values(), *self.memfds)

    def dumps(self) -> list:
        return [dump(fd) for fd in self.fds]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


@pytest.fixture(params=FIXTURES, ids=lambda path: path.stem)
def left(request, tmp_path):
    found = Left(request.param, tmp_path)
    yield found
    found.close()


def set_version(page_map: int, version: int) -> None:
    os.pwrite(page_map, struct.pack("<I", version), VERSION_OFFSET)


def check_taken_over(left, directory):
    engine = left.engine(directory)
    for memfd, pages in zip(left.memfds, left.record["regions"], strict=True):
        engine.add_region(memfd, 0, pages * PAGE)
    assert engine.recover().out_pages == left.record["out_pages"]
    engine.start()
    engine.start_swap_in()
    assert wait_job(engine).error is None
    engine.close()
    memory = b"".join(
        os.pread(fd, pages * PAGE, 0) for fd, pages in zip(left.memfds, left.record["regions"], strict=True)
    )
    version = left.record["version"]
    wrong = [
        page for page in range(len(memory) // PAGE) if memory[page * PAGE :][:PAGE] != contents(page, version)
    ]
    assert wrong == []


def test_there_is_a_fixture_of_todays_format(tmp_path):
    engine = Engine(EngineConfig(tmp_path, fault_threads=1))
    (version,) = struct.unpack("<I", os.pread(engine.page_map_fd, 4, VERSION_OFFSET))
    engine.close()
    assert f"page_map_v{version}" in [path.stem for path in FIXTURES]


def test_pages_of_version_2_are_in_all_places(tmp_path):
    left = Left(next(path for path in FIXTURES if path.stem == "page_map_v2"), tmp_path)
    assert all(left.record[name]["data"] for name in ("store", "segments", "ram", "disk", "key"))
    left.close()


def test_a_released_format_is_read(left, tmp_path):
    check_taken_over(left, tmp_path)


@pytest.mark.parametrize("version", [0, 3, 0xFFFFFFFF])
def test_another_format_is_refused_and_nothing_is_changed(left, tmp_path, version):
    right = left.record["version"]
    set_version(left.page_map, version)
    before = left.dumps()
    with pytest.raises(VmmswapError, match=rf"has format {version} .* reads formats 1 to 2"):
        left.engine(tmp_path)
    assert left.dumps() == before
    set_version(left.page_map, right)
    check_taken_over(left, tmp_path)


@pytest.mark.skipif(bool(missing()), reason=missing() or "nothing is missing")
def test_a_monitor_that_cannot_read_the_format_leaves_the_guest_waiting_and_unharmed():
    with PrivateBus() as bus, restarted(bus) as service:
        monitor = service.start()
        monitor.wait_on_bus()
        with Guest(("4M",), socket=monitor.socket) as guest:
            guest.wait_ready()
            guest.fill()
            monitor.enable()
            service.await_death(0)
            kept = set(service.manager.kept)
            set_version(service.manager.kept["page-map"], 99)
            waiting = guest.start("touch 0 10 read by=main")
            assert service.start().wait_exit() != 0
            assert "has format 99" in monitor.log
            assert set(service.manager.kept) == kept
            assert not waiting.is_done()
            set_version(service.manager.kept["page-map"], 1)
            service.start().wait_on_bus()
            assert waiting.wait().wrong_bytes == 0
            assert guest.verify().wrong_bytes == 0
