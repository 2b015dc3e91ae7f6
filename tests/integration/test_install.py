# SPDX-License-Identifier: GPL-2.0-or-later
"""make install and make uninstall, into a directory and on a running system."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import installation
from tests.support.machine import Machine

PROGRAMS = ("vmmswap-monitor", "vmmswapd", "vmmswapctl")
# What a running system changes by itself, or for every package that is installed: the journal, caches, the
# compiled catalog, backups of /etc/group. The groups themselves are compared.
EVERY_DAY = ("var/log/journal/", "var/cache/", "var/lib/systemd/", "root/.cache/")
GROUPS = {f"etc/{name}" for name in ("group", "gshadow", "group-", "gshadow-", ".pwd.lock")}


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def state(machine: Machine) -> dict[str, object]:
    """All of the system that an installation could change."""
    written = machine.written()
    return {
        "files": {name for name in files(written) - GROUPS if not name.startswith(EVERY_DAY)},
        "directories": {path for path in written.rglob("*vmmswap*") if path.is_dir()},
        "groups": machine.path("/etc/group").read_text(),
        "units": files(machine.path("/etc/systemd/system")),
        "runtime": sorted(path.name for path in machine.path("/run").glob("vmmswap*")),
        "loaded": machine.run(
            "systemctl", "list-units", "--all", "--plain", "--no-legend", "vmmswap*"
        ).stdout,
    }


def test_into_a_directory_and_out(tree: Path, tmp_path: Path) -> None:
    installation.make(tree, "install", f"DESTDIR={tmp_path}", "SYSTEMD_VERSION=254")
    found = files(tmp_path)
    assert {f"usr/bin/{program}" for program in PROGRAMS} < found
    assert "usr/lib/systemd/system/vmmswap@.service.d/10-fd-store-preserve.conf" in found
    assert "usr/share/dbus-1/system.d/org.vmmswap.conf" in found
    assert "usr/share/polkit-1/actions/org.vmmswap.policy" in found
    assert "usr/libexec/vmmswap/vmmswap-guest" in found
    assert "etc/vmmswap.conf" in found
    assert not [name for name in found if "failpoints" in name and name.endswith(".so")]
    texts = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".so"]
    assert [path for path in texts if str(tmp_path).encode() in path.read_bytes()] == []
    installation.make(tree, "uninstall", f"DESTDIR={tmp_path}")
    assert files(tmp_path) == set()
    assert list(tmp_path.rglob("*vmmswap*")) == []


def test_another_prefix_is_in_the_units_and_programs(tree: Path, tmp_path: Path) -> None:
    installation.make(tree, "install", f"DESTDIR={tmp_path}", "PREFIX=/opt/x", "SYSTEMD_VERSION=252")
    unit = (tmp_path / "opt/x/lib/systemd/system/vmmswap@.service").read_text()
    assert "\nExecStart=/opt/x/bin/vmmswap-monitor -- %i\n" in unit
    assert "/opt/x/lib/vmmswap" in (tmp_path / "opt/x/bin/vmmswapctl").read_text()
    assert not (tmp_path / "opt/x/lib/systemd/system/vmmswap@.service.d").exists()
    installation.make(tree, "uninstall", f"DESTDIR={tmp_path}", "PREFIX=/opt/x")
    assert files(tmp_path) == set()


@pytest.fixture
def own_machine(machine: Machine, tree: Path) -> Iterator[Machine]:
    del machine  # for its skip
    with Machine(binds={installation.INSIDE: str(tree)}) as booted:
        yield booted


def test_on_a_running_system(own_machine: Machine) -> None:
    before = state(own_machine)
    installation.make_inside(own_machine, "install")
    for program in PROGRAMS:
        assert own_machine.sh(f"cd /; {program} --help", user="nobody").stdout.startswith("usage: ")
    own_machine.sh("systemctl enable --now vmmswap@1a.b-c.socket")
    socket = own_machine.path("/run/vmmswap/1a.b-c.sock").stat()
    group = own_machine.sh("getent group vmmswap | cut -d: -f3").stdout
    assert (socket.st_mode & 0o777, socket.st_uid, socket.st_gid) == (0o660, 0, int(group))
    own_machine.path("/etc/vmmswap.conf").write_text("# mine\n")
    installation.make_inside(own_machine, "install")
    assert own_machine.path("/etc/vmmswap.conf").read_text() == "# mine\n"
    assert own_machine.unit("vmmswap@1a.b-c.socket", "ActiveState") == {"ActiveState": "active"}

    output = installation.make_inside(own_machine, "uninstall")
    assert "Left /etc/vmmswap.conf, because it was changed." in output
    own_machine.sh("rm /etc/vmmswap.conf")
    assert state(own_machine) == before


def test_uninstall_of_an_unchanged_installation_takes_the_configuration(own_machine: Machine) -> None:
    before = state(own_machine)
    installation.make_inside(own_machine, "install")
    assert own_machine.path("/etc/vmmswap.conf").exists()
    assert installation.make_inside(own_machine, "uninstall") == ""
    assert state(own_machine) == before
