# SPDX-License-Identifier: GPL-2.0-or-later
"""make install and make uninstall, into a directory and on a running system."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import documents, installation
from tests.support.machine import Machine

PROGRAMS = ("vmmswap-monitor", "vmmswapd", "vmmswapctl")
# What a running system changes by itself, or for every package that is installed: the journal, caches, the
# compiled catalog, backups of /etc/group. Groups are compared by themselves; ours stays.
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
        "groups": re.sub("^vmmswap:.*\n", "", machine.path("/etc/group").read_text(), flags=re.MULTILINE),
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


def test_another_prefix_is_for_what_no_daemon_reads(tree: Path, tmp_path: Path) -> None:
    installation.make(tree, "install", f"DESTDIR={tmp_path}", "PREFIX=/opt/x", "SYSTEMD_VERSION=252")
    unit = (tmp_path / "usr/lib/systemd/system/vmmswap@.service").read_text()
    assert "\nExecStart=/opt/x/bin/vmmswap-monitor -- %i\n" in unit
    assert "\nDocumentation=file:///opt/x/share/doc/vmmswap/README.md\n" in unit
    assert "/opt/x/lib/vmmswap" in (tmp_path / "opt/x/bin/vmmswapctl").read_text()
    assert not (tmp_path / "usr/lib/systemd/system/vmmswap@.service.d").exists()
    assert not [
        name for name in files(tmp_path) if re.match("opt/x/.*(dbus-1|polkit-1|udev|systemd/system)/", name)
    ]
    installation.make(tree, "uninstall", f"DESTDIR={tmp_path}", "PREFIX=/opt/x")
    assert files(tmp_path) == set()


def test_links_of_the_installed_documents_lead_somewhere(tree: Path, tmp_path: Path) -> None:
    installation.make(tree, "install", f"DESTDIR={tmp_path}", "SYSTEMD_VERSION=252")
    pages = list((tmp_path / "usr/share/doc/vmmswap").rglob("*.md"))
    assert len(pages) > 15
    for page in pages:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"
    unit = (tmp_path / "usr/lib/systemd/system/vmmswap@.service").read_text()
    [document] = re.findall("^Documentation=file://(/.*)$", unit, re.MULTILINE)
    assert (tmp_path / document.lstrip("/")).exists()


def test_packages_of_the_distribution_are_used_and_what_is_missing_comes_from_the_wheelhouse(
    tree: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "tree"
    shutil.copytree(tree, copy, symlinks=True)
    root = tmp_path / "root"
    before = {path.name for path in (copy / "build/library").iterdir()}
    lacking = installation.missing_dependencies(copy)
    assert ("dbus_next" in before) == ("dbus-next>=0.2.3" in lacking)
    installation.make(copy, "install", f"DESTDIR={root}", "PYTHON_PACKAGES=")
    installed = {path.name for path in (root / "usr/lib/vmmswap").iterdir()}
    assert {"dbus_next", "rich", "ptrace", "systemd", "vmmswap"} <= installed
    # Without site there is nothing beside it but the standard library.
    code = "import sys; sys.path.insert(0, sys.argv[1]); import vmmswap.monitor.main, vmmswap.ctl.main"
    subprocess.run(["/usr/bin/python3", "-I", "-S", "-c", code, root / "usr/lib/vmmswap"], check=True)


def test_the_prerequisites_are_as_documented() -> None:
    listed = documents.read("tools/apt-packages")
    needed = {line.split()[1] for line in listed.splitlines() if line.startswith(("base ", "debian "))}
    text = documents.section(documents.read("docs/service.md"), "## Install and remove")
    [command] = re.findall(r"^    apt-get install ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert set(command.replace("\\", " ").split()) == needed


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

    own_machine.sh(
        "gpasswd --add games vmmswap; mkdir -p /var/log/vmmswap/web; echo x >/var/log/vmmswap/web/trace"
    )

    output = installation.make_inside(own_machine, "uninstall")
    assert "Left /etc/vmmswap.conf, because it was changed." in output
    assert "Left /var/log/vmmswap, where page faults were logged." in output
    assert "Left the group vmmswap and its members." in output
    own_machine.sh("rm -r /etc/vmmswap.conf /var/log/vmmswap")
    assert state(own_machine) == before

    # Again, elsewhere: the bus and polkit find their policies all the same.
    installation.make_inside(own_machine, "install", "PREFIX=/usr/local")
    assert own_machine.sh("getent group vmmswap").stdout.endswith(":games\n")
    assert own_machine.path("/etc/vmmswap.conf").exists()
    assert own_machine.sh("cd /; command -v vmmswapctl").stdout == "/usr/local/bin/vmmswapctl\n"
    own_machine.sh("vmmswapctl list; vmmswapctl prepare web")
    assert "org.vmmswap.control" in own_machine.sh("pkaction").stdout
    importing = (
        "/usr/bin/python3 -c 'from vmmswap.handoff.client import VmmClient; print(VmmClient.__name__)'"
    )
    assert own_machine.sh(f"cd /; {importing}", user="nobody").stdout == "VmmClient\n"
    output = installation.make_inside(own_machine, "uninstall", "PREFIX=/usr/local")
    assert output == "Left the group vmmswap and its members. groupdel vmmswap removes it.\n"
    assert state(own_machine) == before
