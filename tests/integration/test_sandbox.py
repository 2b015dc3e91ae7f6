# SPDX-License-Identifier: GPL-2.0-or-later
"""The sandbox of vmmswap@.service lets the monitor do its work and nothing else: tried, call by call."""

import json
import platform
import shutil
from pathlib import Path

import pytest

from tests.support.machine import Machine

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
INSIDE = "/usr/local/lib"
NAME = "1a.b-c"
UNIT = f"vmmswap@{NAME}.service"
DROP_IN = """\
[Service]
Type=oneshot
ExecStart=
ExecStart=/usr/bin/python3 -I {probe} {pid} {addr} {memfd} %i
StandardOutput=journal
Restart=no
"""
PREPARE = """\
set -e
systemd-sysusers {systemd}/vmmswap.sysusers.conf
systemd-tmpfiles --create {systemd}/vmmswap.tmpfiles.conf
mkdir -p /home/somebody /var/lib/vmmswap/other
echo secret | tee /home/somebody/secret >/root/secret
touch /tmp/of-the-machine
mknod /dev/probe-disk b 7 77
systemctl daemon-reload
"""
# What a refusal may look like: a file system that is read-only or hidden, a filter, a missing capability.
REFUSALS = {"EROFS", "EACCES", "EPERM", "ENOENT", "EAFNOSUPPORT"}
# These say by their errno which part of the sandbox refused.
EXACT = {
    "not_ipv4": "EAFNOSUPPORT",
    "not_ipv6": "EAFNOSUPPORT",
    "not_netlink": "EAFNOSUPPORT",
    "not_write_etc": "EROFS",
    "not_write_usr": "EROFS",
    "not_write_run": "EROFS",
    "not_write_other_vm": "EROFS",
    "not_disk": "EPERM",
}

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the probe has x86-64's system calls")


@pytest.fixture(scope="module")
def outcomes(machine: Machine) -> dict[str, str]:
    # The unit's sandbox hides /tmp and /home, where this tree may be.
    machine.sh(f"cp {SUPPORT}/sandbox_probe.py {SUPPORT}/sandbox_target.py {INSIDE}")
    target = machine.spawn(f"exec python3 -I {INSIDE}/sandbox_target.py", user="nobody")
    (line,) = machine.wait_for(
        "the target's line", lambda: machine.journal(_SYSTEMD_UNIT=target, _TRANSPORT="stdout")
    )
    where = json.loads(line["MESSAGE"])
    units = machine.path("/etc/systemd/system")
    for unit in ("vmmswap@.service", "vmmswap@.socket"):
        shutil.copy(ROOT / "systemd" / unit, units)
    (units / f"{UNIT}.d").mkdir()
    drop_in = DROP_IN.format(probe=f"{INSIDE}/sandbox_probe.py", **where)
    (units / f"{UNIT}.d" / "probe.conf").write_text(drop_in)
    machine.sh(PREPARE.format(systemd=ROOT / "systemd"))
    machine.sh(f"systemctl start {UNIT} || journalctl -u {UNIT}")
    lines = [str(entry["MESSAGE"]) for entry in machine.journal(_SYSTEMD_UNIT=UNIT, _TRANSPORT="stdout")]
    (found,) = [line for line in lines if line.startswith("OUTCOMES ")] or pytest.fail("\n".join(lines))
    result: dict[str, str] = json.loads(found.removeprefix("OUTCOMES "))
    return result


def test_the_monitor_can_do_all_its_work(outcomes: dict[str, str]) -> None:
    needed = {name: outcome for name, outcome in outcomes.items() if not name.startswith("not_")}
    assert len(needed) > 15
    assert {name: outcome for name, outcome in needed.items() if outcome != "ok"} == {}


def test_the_monitor_can_do_nothing_else(outcomes: dict[str, str]) -> None:
    refused = {name: outcome for name, outcome in outcomes.items() if name.startswith("not_")}
    assert len(refused) > 15
    assert {name: outcome for name, outcome in refused.items() if outcome not in REFUSALS} == {}
    assert {name: refused[name] for name in EXACT} == EXACT


def test_without_the_sandbox_the_same_is_possible(machine: Machine, outcomes: dict[str, str]) -> None:
    """Else the refusals would show nothing of the sandbox."""
    del outcomes  # for what its fixture made
    start = machine.path(f"/etc/systemd/system/{UNIT}.d/probe.conf").read_text().splitlines()[-3]
    command = start.removeprefix("ExecStart=").replace("%i", "x")
    properties = ["StateDirectory=vmmswap/x", "LogsDirectory=vmmswap/x", "PrivateMounts=yes"]
    output = machine.sh(command, properties=properties).stdout.splitlines()[-1]
    free = json.loads(output.removeprefix("OUTCOMES "))
    possible = {name for name, outcome in free.items() if name.startswith("not_") and outcome == "ok"}
    assert possible >= {
        "not_home",
        "not_root_home",
        "not_ipv4",
        "not_ipv6",
        "not_netlink",
        "not_write_etc",
        "not_write_usr",
        "not_write_run",
        "not_write_sockets",
        "not_write_other_vm",
        "not_mount",
        "not_namespace",
        "not_set_user_id_file",
        "not_writable_code",
    }


def test_the_sandbox_has_its_own_temporary_files(machine: Machine, outcomes: dict[str, str]) -> None:
    assert outcomes["private_temporary_files"] == "ok"
    assert machine.path("/tmp/of-the-machine").exists()
    assert not machine.path("/tmp/of-the-sandbox").exists()
