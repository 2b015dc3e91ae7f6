# SPDX-License-Identifier: GPL-2.0-or-later
"""The units: what systemd itself says of them, and the clauses on which a guest's memory depends."""

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "systemd"
MONITOR = SYSTEMD / "vmmswap@.service"
SOCKET = SYSTEMD / "vmmswap@.socket"
HOST = SYSTEMD / "vmmswapd.service"
SLICE = SYSTEMD / "vmmswap.slice"

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="making users, groups and owners needs root")


class Unit:
    """A unit file: each key's values in order."""

    def __init__(self, path: Path) -> None:
        parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
        parser.optionxform = str  # type: ignore[assignment]
        parser.read_string(re.sub(r"^(\w+)=", self._number, path.read_text(), flags=re.MULTILINE))
        self._sections = parser

    def _number(self, match: re.Match[str]) -> str:
        # configparser keeps the last of equal keys; systemd collects them.
        return f"{match[1]}.{match.start()}="

    def all(self, section: str, key: str) -> list[str]:
        return [value for name, value in self._sections[section].items() if name.split(".")[0] == key]

    def get(self, section: str, key: str) -> str:
        (value,) = self.all(section, key)
        return value


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as `make install` puts them, their programs present, because `verify` looks."""
    units = tmp_path / "units"
    units.mkdir()
    for unit in (MONITOR, SOCKET, HOST, SLICE):
        (units / unit.name).write_text(unit.read_text().replace("/usr/bin/", f"{tmp_path}/bin/"))
    (tmp_path / "bin").mkdir()
    for program in ("vmmswap-monitor", "vmmswapd"):
        path = tmp_path / "bin" / program
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return units


def verify(units: Path, *names: str) -> str:
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:/usr/lib/systemd/system"}
    command = ["systemd-analyze", "verify", "--man=no", *(str(units / name) for name in names)]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    return done.stderr + (f"exit status {done.returncode}" if done.returncode else "")


@needs_analyze
@pytest.mark.parametrize("instance", ["web", "1a.b-c", "x" * 64])
def test_verify_has_nothing_to_say(installed: Path, instance: str) -> None:
    names = []
    for unit in (SOCKET, MONITOR):
        name = unit.name.replace("@", f"@{instance}")
        (installed / name).symlink_to(unit.name)
        names.append(name)
    assert verify(installed, *names, "vmmswapd.service", "vmmswap.slice") == ""


@needs_analyze
def test_verify_would_speak_up(installed: Path) -> None:
    (installed / "vmmswapd.service").write_text(HOST.read_text() + "NoSuchKey=yes\n")
    assert "NoSuchKey" in verify(installed, "vmmswapd.service")


@needs_analyze
@pytest.mark.parametrize(("unit", "tenths"), [(MONITOR, 22), (HOST, 15)])
def test_exposure(unit: Path, tenths: int) -> None:
    command = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--no-pager",
        f"--threshold={tenths}",
        str(unit),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_socket_is_the_contracts() -> None:
    unit = Unit(SOCKET)
    assert unit.get("Socket", "ListenStream") == "/run/vmmswap/%i.sock"
    assert unit.get("Socket", "SocketMode") == "0660"
    assert unit.get("Socket", "SocketGroup") == "vmmswap"


def test_a_restart_never_loses_the_fd_store() -> None:
    unit = Unit(MONITOR)
    assert unit.get("Unit", "StartLimitIntervalSec") == "0"
    assert unit.get("Service", "Restart") == "on-failure"
    assert unit.get("Service", "RestartPreventExitStatus") == "2 69 70 78"
    assert unit.get("Service", "RestartKillSignal") == "SIGUSR2"
    assert unit.get("Service", "NotifyAccess") == "all"
    assert unit.get("Service", "KillMode") == "control-group"
    assert int(unit.get("Service", "FileDescriptorStoreMax")) >= 253 * 2
    assert unit.all("Service", "BusName") == []
    # Stopped only by name: nothing that stops may take the monitor with it.
    for key in ("Requires", "BindsTo", "PartOf"):
        assert unit.all("Unit", key) == []


def test_a_guests_bytes_are_never_dumped_or_listed() -> None:
    assert Unit(MONITOR).get("Service", "LimitCORE") == "1"  # 0 does not stop pipes
    assert Unit(MONITOR).get("Service", "WatchdogSignal") == "SIGALRM"
    assert Unit(MONITOR).get("Service", "StateDirectoryMode") == "0700"
    assert Unit(HOST).get("Service", "LimitCORE") == "1"


def test_all_monitors_together_are_bounded() -> None:
    assert Unit(MONITOR).get("Service", "Slice") == SLICE.name
    assert Unit(SLICE).get("Slice", "MemoryMax") == "50%"
    assert Unit(HOST).all("Service", "MemoryMax") != []


def test_keys_of_new_systemd_are_in_the_drop_in_only() -> None:
    assert Unit(SYSTEMD / "fd-store-preserve.conf").get("Service", "FileDescriptorStorePreserve") == "yes"
    assert Unit(MONITOR).all("Service", "FileDescriptorStorePreserve") == []


@needs_root
@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_sysusers_makes_the_group(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    config = SYSTEMD / "vmmswap.sysusers.conf"
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", str(config)], check=True, capture_output=True)
    assert re.search(r"^vmmswap:", (tmp_path / "etc" / "group").read_text(), re.MULTILINE)


@needs_root
@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="systemd-tmpfiles is not installed")
def test_tmpfiles_makes_the_directory_of_the_sockets(tmp_path: Path) -> None:
    config = SYSTEMD / "vmmswap.tmpfiles.conf"
    command = ["systemd-tmpfiles", f"--root={tmp_path}", "--create", str(config)]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "run" / "vmmswap").stat().st_mode & 0o7777 == 0o755
