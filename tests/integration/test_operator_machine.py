# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator meets in the first hour, in a booted system: starts that fail, orders that are given up,
names that are taken. One boot, many checks.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import installation, service
from tests.support.attach_unit import KNOWN, Target, install_targets, target
from tests.support.machine import Machine
from tests.support.service import Service
from vmmswap.names import HOST_INTERFACE, HOST_PATH

HOST = ("org.vmmswap", HOST_PATH, HOST_INTERFACE)
CONFIG = "/etc/vmmswap.conf.d/operator.conf"
# Connects to the socket that is named, as a VMM does; prints what comes until the end.
CONNECT = """
import socket, sys
with socket.socket(socket.AF_UNIX) as stream:
    stream.connect(sys.argv[1])
    while True:
        try:
            piece = stream.recv(4096)
        except ConnectionResetError:
            break
        if not piece:
            break
        sys.stdout.write(piece.decode())
"""


class Host(Service):
    """The installed service, and what is done wrong with it."""

    def configure(self, text: str) -> None:
        self.machine.path(CONFIG).parent.mkdir(exist_ok=True)
        self.machine.path(CONFIG).write_text(text)

    def connect(self, name: str) -> str:
        """Connect to the VM's socket; what comes, until the other side closes."""
        command = shlex.join(["python3", "-c", CONNECT, f"/run/vmmswap/{name}.sock"])
        return self.machine.sh(command, timeout_s=90).stdout

    def ctl(self, *arguments: str) -> str:
        """What vmmswapctl says when it fails: one line."""
        done = self.machine.run("vmmswapctl", *arguments, check=False)
        assert done.returncode != 0, done
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    def end(self, name: str) -> None:
        units = (f"vmmswap@{name}.socket", f"vmmswap@{name}.service")
        self.machine.run("systemctl", "stop", *units)
        self.machine.run("systemctl", "reset-failed", *units, check=False)


@pytest.fixture(scope="module")
def host(tree: Path) -> Iterator[Host]:
    if reason := Machine.missing():
        pytest.skip(reason)
    with Machine(binds={installation.INSIDE: str(tree)}) as machine:
        install_targets(machine)
        service.install(machine)
        yield Host(machine)


@pytest.fixture(scope="module")
def vmm(host: Host) -> Iterator[Target]:
    """A VMM that may be attached to."""
    with target(host, "somebodys", KNOWN) as running:
        yield running


# A monitor that cannot start

REASONS = [
    ("typo", "Mode=quickly", f"{CONFIG}:2: Mode=quickly: 'quickly' is not one of auto, live, freeze"),
    (
        "readonly",
        "SwapDirectory=/srv",
        "cannot make a file in the swap directory /srv: Read-only file system",
    ),
]


@pytest.mark.parametrize(("name", "setting", "reason"), REASONS, ids=["configuration", "sandbox"])
def test_who_connects_is_told_why_and_the_unit_fails_once(
    host: Host, name: str, setting: str, reason: str
) -> None:
    host.configure(f"[VM {name}]\n{setting}\n")
    host.machine.run("systemctl", "start", f"vmmswap@{name}.socket")
    for times in (1, 2):
        reply = json.loads(host.connect(name))
        assert reply["type"] == "error"
        assert reason in reply["message"]
        assert host.wait_unit(name, "failed")["NRestarts"] == "0"
        said = host.machine.journal(VMMSWAP_VM=name, PRIORITY="3")
        assert len([entry for entry in said if reason in entry["MESSAGE"]]) == times
    host.machine.run("systemctl", "stop", f"vmmswap@{name}.service")
    assert host.machine.unit(f"vmmswap@{name}.socket", "ActiveState") == {"ActiveState": "active"}
    host.configure("[Swap]\nHandoffTimeoutSec=0.1\n")
    assert "no message within" in json.loads(host.connect(name))["message"]  # the next monitor is well
    host.configure("")
    host.end(name)


def test_a_bad_instance_name_is_told_too(host: Host) -> None:
    host.machine.run("systemctl", "start", "vmmswap@-bad.socket")
    assert "'-bad' is not a VM name" in json.loads(host.connect("-bad"))["message"]
    assert host.wait_unit("-bad", "failed")["NRestarts"] == "0"
    host.end("-bad")


def test_a_bus_that_refuses_the_name_is_told_too(host: Host) -> None:
    policy = "/usr/share/dbus-1/system.d/org.vmmswap.conf"
    reload = "busctl call org.freedesktop.DBus / org.freedesktop.DBus ReloadConfig"
    host.machine.sh(f"mv {policy} /srv && {reload}")
    try:
        host.machine.run("systemctl", "start", "vmmswap@policy.socket")
        assert "Is org.vmmswap.conf installed" in json.loads(host.connect("policy"))["message"]
        assert host.wait_unit("policy", "failed")["NRestarts"] == "0"
    finally:
        host.machine.sh(f"mv /srv/org.vmmswap.conf {policy} && {reload}")
        host.end("policy")


def test_what_systemd_cannot_even_execute_is_given_up(host: Host, vmm: Target) -> None:
    host.drop_in("mountless", "ReadWritePaths=/no/such/directory")
    host.machine.run("systemctl", "start", "vmmswap@mountless.socket")
    assert host.connect("mountless") == ""
    host.wait_unit("mountless", "inactive")
    shown = host.machine.wait_for(
        "the socket to give up",
        lambda: (
            found
            if (found := host.machine.unit("vmmswap@mountless.socket", "ActiveState", "Result"))[
                "ActiveState"
            ]
            == "failed"
            else None
        ),
    )
    assert shown["Result"] == "trigger-limit-hit"
    line = host.ctl("attach", "mountless", str(vmm.pid))
    assert "the monitor of 'mountless' cannot start" in line
    assert "`journalctl --unit=vmmswap@mountless.service` has more" in line
    host.wait_unit("mountless", "inactive")
    host.end("mountless")


@pytest.mark.parametrize(("name", "setting", "reason"), REASONS, ids=["configuration", "sandbox"])
def test_attach_tells_why_at_once_and_leaves_no_socket(
    host: Host, vmm: Target, name: str, setting: str, reason: str
) -> None:
    host.configure(f"[VM {name}]\n{setting}\n")
    line = host.ctl("attach", name, str(vmm.pid))
    assert reason in line
    assert not host.machine.path(f"/run/vmmswap/{name}.sock").exists()
    if name == "readonly":  # what only the monitor's sandbox finds
        assert f"`journalctl --unit=vmmswap@{name}.service` has more" in line
        assert host.wait_unit(name, "failed")["NRestarts"] == "0"
    host.configure("")
    host.end(name)


# Orders that were given up


@contextmanager
def stopped_monitor(host: Host, name: str) -> Iterator[None]:
    """A monitor that is there and does nothing; at the end it goes on."""
    host.drop_in(name, "WatchdogSec=0")
    unit = f"vmmswap@{name}.service"
    host.machine.run("systemctl", "start", unit)
    host.machine.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", unit)
    try:
        yield
    finally:
        host.machine.run("systemctl", "kill", "--kill-whom=main", "--signal=CONT", unit)


def test_an_attach_that_was_given_up_does_not_happen_later(host: Host, vmm: Target) -> None:
    socket = "/run/vmmswap/patient.sock"
    count = f"grep -cE ' 0[23] .*{socket}$' /proc/net/unix"
    with stopped_monitor(host, "patient"):
        waiting = host.machine.spawn(f"exec vmmswapctl attach patient {vmm.pid}")
        host.machine.wait_for(
            "vmmswapd to connect",
            lambda: host.machine.sh(count, check=False).stdout != "0\n",
        )
        host.machine.run("systemctl", "stop", waiting)
        host.machine.wait_for(
            "vmmswapd to notice",
            lambda: host.machine.journal("--unit=vmmswapd.service", "--grep=has given its order up"),
        )
    host.machine.wait_for(
        "the monitor to notice",
        lambda: host.machine.journal("--grep=attach was given up", VMMSWAP_VM="patient"),
    )
    assert "userfaultfd" not in vmm.links()
    host.end("patient")


# Names that are taken


def test_a_taken_name_and_an_attached_process_are_named(host: Host, vmm: Target) -> None:
    host.machine.run("vmmswapctl", "attach", "first", str(vmm.pid))
    with target(host, "another", KNOWN) as other:
        line = host.ctl("attach", "first", str(other.pid))
        assert f"the name 'first' is taken by process {vmm.pid} (qemu-system-tes)" in line
    for name in ("first", "second"):
        line = host.ctl("attach", name, str(vmm.pid))
        assert f"process {vmm.pid} is the VM 'first' already: `vmmswapctl detach first` releases it" in line
    assert not host.machine.path("/run/vmmswap/second.sock").exists()
    assert host.status("first")["State"] == "Ready"
    call = shlex.join(["busctl", "call", *HOST, "AttachWithOptions", "sua{sv}", "first", str(vmm.pid), "0"])
    answers = host.machine.sh(
        f"for round in $(seq 10); do for one in 1 2 3; do {call} 2>&1 & done; wait; done"
    ).stdout.splitlines()
    assert len(answers) == 30
    assert {answer.partition(":")[0] for answer in answers} == {"Call failed"}
    assert all(f"process {vmm.pid} is the VM 'first' already" in answer for answer in answers), answers
    host.machine.run("vmmswapctl", "detach", "first")
    host.wait_unit("first", "inactive")
