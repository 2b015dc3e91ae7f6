# SPDX-License-Identifier: GPL-2.0-or-later
"""DiskTierMax= and DiskKeepFree= in bytes."""

import os
from pathlib import Path

import pytest

from vmmswap.config import load
from vmmswap.config_checks import ConfigError
from vmmswap.disk_limits import disk_limits
from vmmswap.monitor import recovery
from vmmswap.monitor.keep import fdstore
from vmmswap.monitor.trace_file import FileSink
from vmmswap.trace_format import Fault, TraceHeader

GIB = 1 << 30
DEADLINE_S = 60.0


def limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, total_bytes: int) -> tuple[int, int]:
    real = os.statvfs(tmp_path)
    fake = os.statvfs_result((4096, 4096, total_bytes // 4096, *real[3:]))
    monkeypatch.setattr(os, "statvfs", lambda _path: fake)
    file = tmp_path / "conf"
    file.write_text(f"[Swap]\n{text}\n")
    return disk_limits(load("web", [file]), tmp_path)


@pytest.mark.parametrize(
    ("text", "total_bytes", "expected"),
    [
        ("", 10 * GIB, (0, GIB // 2)),
        ("", 1000 * GIB, (0, 4 * GIB)),
        ("DiskTierMax=20%\nDiskKeepFree=10%", 1000 * GIB, (200 * GIB, 100 * GIB)),
        ("DiskTierMax=3G\nDiskKeepFree=0", 10 * GIB, (3 * GIB, 0)),
        ("DiskTierMax=2097152\nDiskKeepFree=100%", 8192, (2 << 20, 8192)),
        ("DiskTierMax=7000K\nDiskKeepFree=1T", GIB, (7000 << 10, 1 << 40)),
    ],
)
def test_sizes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, total_bytes: int, expected: tuple[int, int]
) -> None:
    assert limits(monkeypatch, tmp_path, text, total_bytes) == expected


@pytest.mark.parametrize("value", ["101%", "-1", "1.5G", "G", "1 G", "1g", "one"])
def test_what_is_no_size(tmp_path: Path, value: str) -> None:
    file = tmp_path / "conf"
    file.write_text(f"[Swap]\nDiskTierMax={value}\n")
    with pytest.raises(ConfigError, match="is not a size"):
        load("web", [file])


@pytest.mark.parametrize(("setting", "kept"), [("0", 3), ("100%", 0)])
def test_the_page_fault_log_leaves_the_reserve(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, setting: str, kept: int
) -> None:
    path = tmp_path / "page_fault.log"
    sink = FileSink(path, TraceHeader(0, ()), setting)
    for _ in range(2):
        sink.write([Fault(0, 0, 0)])
    sink.close()
    sink.done.result(DEADLINE_S)
    assert len(path.read_text().splitlines()) == kept
    said = [record.message for record in caplog.records if "DiskKeepFree=" in record.message]
    assert len(said) == (0 if kept else 1)


def test_a_directory_that_is_gone_limits_nothing(tmp_path: Path) -> None:
    assert disk_limits(load("web", []), tmp_path / "gone") == (0, 0)


@pytest.mark.parametrize("name", [fdstore.STORE, "store-disk"])
def test_a_successor_has_the_limits_of_the_file_that_it_has(tmp_path: Path, name: str) -> None:
    """Without them a VM could fill the disk once its directory had gone, or had become another one."""
    file, swap_dir = tmp_path / "conf", tmp_path / "swap"
    file.write_text("[Swap]\nDiskTierMax=50%\n")
    swap_dir.mkdir()
    expected = disk_limits(load("web", [file]), swap_dir)
    fd = os.open(swap_dir, os.O_TMPFILE | os.O_RDWR, 0)
    try:
        swap_dir.rmdir()
        store = recovery.store_of({name: fd})
        assert store
        assert disk_limits(load("web", [file]), store) == expected
        assert expected[0] > 0
        assert expected[1] > 0
    finally:
        os.close(fd)


def test_a_store_on_ram_has_no_file() -> None:
    assert recovery.store_of({"store-segments": 3, "store-ram": 4}) is None
