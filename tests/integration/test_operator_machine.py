# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator meets in the first hour, in a booted system: starts that fail, orders that are given up,
names that are taken. One boot, many checks.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import installation, service
from tests.support.attach_unit import KNOWN, Target, install_targets, target
from tests.support.machine import Machine
from tests.support.service import Service
from vmmswap.message_ids import TRACE_BATCH
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

    def has_said(self, text: str, **match: str) -> bool:
        """Whether such an entry of the journal has this text in it."""
        return any(text in str(entry["MESSAGE"]) for entry in self.machine.journal(**match))

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
    host.machine.run("systemctl", "stop", "vmmswapd.service")
    host.machine.sh(f"mv {policy} /srv && {reload}")
    try:
        host.machine.run("systemctl", "start", "vmmswap@policy.socket")
        assert "Is org.vmmswap.conf installed" in json.loads(host.connect("policy"))["message"]
        assert host.wait_unit("policy", "failed")["NRestarts"] == "0"
        host.machine.wait_for(
            "vmmswapd to give up",
            lambda: host.machine.unit("vmmswapd.service", "ActiveState")["ActiveState"] == "failed",
        )
        assert host.machine.unit("vmmswapd.service", "NRestarts") == {"NRestarts": "0"}
        assert "vmmswapd" in host.ctl("prepare", "policy")
    finally:
        host.machine.sh(f"mv /srv/org.vmmswap.conf {policy} && {reload}")
        host.machine.run("systemctl", "reset-failed", "vmmswapd.service")
        host.end("policy")


def test_what_systemd_cannot_even_execute_is_given_up(host: Host, vmm: Target) -> None:
    host.drop_in("mountless", "ReadWritePaths=/no/such/directory")
    host.drop_in("mountless", "TriggerLimitIntervalSec=1h", kind="socket")  # ten starts may take a while
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


# Orders an attach, hangs up, and lives on: its sender is looked at.
HANG_UP = """
import os, socket, sys, time
with socket.socket(socket.AF_UNIX) as stream:
    stream.connect(sys.argv[1])
    message = b'{"vmmswap":1,"type":"attach"}' + bytes([10])
    socket.send_fds(stream, [message], [os.pidfd_open(int(sys.argv[2]))])
open("/run/hung-up", "w").close()
time.sleep(100000)
"""


def test_an_attach_whose_sender_has_hung_up_does_not_happen_later(host: Host, vmm: Target) -> None:
    host.drop_in("patient", "WatchdogSec=0")
    unit = "vmmswap@patient.service"
    host.machine.run("systemctl", "start", unit)
    host.machine.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", unit)
    sender = host.machine.spawn(
        "exec " + shlex.join(["python3", "-c", HANG_UP, "/run/vmmswap/patient.sock", str(vmm.pid)])
    )
    host.machine.wait_for("the sender to hang up", lambda: host.machine.path("/run/hung-up").exists())
    host.machine.run("systemctl", "kill", "--kill-whom=main", "--signal=CONT", unit)
    host.machine.wait_for(
        "the monitor to notice",
        lambda: host.has_said("attach was cancelled", VMMSWAP_VM="patient"),
    )
    assert "userfaultfd" not in vmm.links()
    host.machine.run("systemctl", "stop", sender)
    host.end("patient")


def test_an_attach_whose_caller_has_left_does_not_happen_later(host: Host, vmm: Target) -> None:
    host.drop_in("slow", "ExecStartPre=/bin/sh -c 'until [ -e /run/go ]; do sleep 0.1; done'")
    waiting = host.machine.spawn(f"exec vmmswapctl attach slow {vmm.pid}")
    host.wait_unit("slow", "activating")
    host.machine.run("systemctl", "stop", waiting)
    host.machine.wait_for(
        "vmmswapd to notice",
        lambda: host.has_said("has cancelled its order", SYSLOG_IDENTIFIER="vmmswapd"),
    )
    host.machine.path("/run/go").touch()  # were the start still under way it would go on now
    host.machine.wait_for(
        "the monitor to be stopped",  # in ExecStartPre=, which systemd may call a failure
        lambda: (
            host.machine.unit("vmmswap@slow.service", "ActiveState")["ActiveState"] in ("inactive", "failed")
        ),
    )
    assert "userfaultfd" not in vmm.links()
    assert not host.machine.path("/run/vmmswap/slow.sock").exists()
    host.end("slow")


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


# Figures and words


def test_a_swap_directory_on_tmpfs_is_reported_as_no_gain(host: Host) -> None:
    host.configure("[VM ram]\nSwapDirectory=/dev/shm\n")
    host.drop_in("ram", "ReadWritePaths=/dev/shm")
    with host.guest("ram"):
        host.swap_out("ram")
        found = host.status("ram")
        assert found["SwapFileSystem"] == "tmpfs"
        assert found["StoredRamBytes"] == found["StoredBytes"] > 0
        assert (found["StoredDiskBytes"], found["WrittenBytes"]) == (0, 0)
        shown = host.machine.run("vmmswapctl", "status", "ram").stdout
        assert "Swap file on" in shown and "tmpfs" in shown
    assert host.has_said("/dev/shm is on tmpfs: what is swapped out stays on RAM", VMMSWAP_VM="ram")
    host.configure("")


def test_a_refused_attach_says_what_happened_and_no_more(host: Host, vmm: Target) -> None:
    line = host.ctl("attach", "nowhere", str(vmm.pid), "--qmp", "/no/such/socket")
    assert "cannot connect to the QMP socket /no/such/socket: No such file or directory" in line
    assert "userfaultfd" not in vmm.links()
    host.wait_unit("nowhere", "inactive")
    said = [str(entry["MESSAGE"]) for entry in host.machine.journal(VMMSWAP_VM="nowhere")]
    assert any("no VM came: ending" in message for message in said), said
    assert not any("Exit was called" in message or "[Errno" in message for message in said), said
    assert not host.machine.path("/run/vmmswap/nowhere.sock").exists()


SHARED_FILE = """
import mmap, sys, time
with open("/dev/shm/guest-memory", "w+b") as file:
    file.truncate(64 << 20)
    memory = mmap.mmap(file.fileno(), 64 << 20)
private = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE)
time.sleep(100000)
"""


def test_another_users_file_in_dev_shm_is_not_called_private(host: Host) -> None:
    host.machine.sh("install -o nobody -m 600 /dev/null /dev/shm/guest-memory")
    command = f"exec /opt/qemu-system-python -c {shlex.quote(SHARED_FILE)}"
    host.machine.sh("cp -L $(command -v python3) /opt/qemu-system-python")
    unit = host.machine.spawn(command, user="nobody", properties=["NoNewPrivileges=yes"])
    pid = int(host.machine.unit(unit, "MainPID")["MainPID"])
    host.machine.wait_for(
        "its memory", lambda: "guest-memory" in host.machine.path(f"/proc/{pid}/maps").read_text()
    )
    line = host.ctl("attach", "shared", str(pid))
    assert "has shared memory that cannot be taken over: " in line
    assert "/dev/shm/guest-memory" in line and "it is another user's" in line
    assert "Private memory" not in line
    host.machine.run("systemctl", "stop", unit)


def test_traces_are_not_among_what_an_operator_reads(host: Host) -> None:
    with host.guest("traced") as guest:
        host.swap_out("traced")
        host.machine.run("vmmswapctl", "log", "start", "traced")
        assert guest.verify().wrong_bytes == 0
        host.machine.run("vmmswapctl", "log", "stop", "traced")
        assert host.machine.journal(MESSAGE_ID=TRACE_BATCH, VMMSWAP_VM="traced")
        assert not host.machine.journal("--priority=info", MESSAGE_ID=TRACE_BATCH, VMMSWAP_VM="traced")
        assert host.machine.journal("--priority=info", VMMSWAP_VM="traced")


def test_which_monitors_run_another_version_is_listed(host: Host) -> None:
    with host.guest("versioned"):
        version = host.status("versioned")["Version"]
        shown = host.machine.run("vmmswapctl", "list", "--columns", "name,version").stdout
        assert f"versioned  {version}" in shown, shown
        assert "another version" not in shown
        package = "/usr/lib/vmmswap/vmmswap/__init__.py"
        host.machine.sh(f"sed -i.before 's/^__version__ = .*/__version__ = \"99\"/' {package}")
        try:
            shown = host.machine.run("vmmswapctl", "list").stdout
            assert "1 run another version than this vmmswapctl (99): versioned" in shown
            host.machine.run("systemctl", "restart", "vmmswap@versioned.service")
            host.wait_state("versioned", "Ready")
            assert host.status("versioned")["Version"] == "99"
        finally:
            host.machine.sh(f"mv {package}.before {package}")


def test_active_with_all_back_is_shown_as_that(host: Host) -> None:
    with host.guest("woken", mix="random=100") as guest:
        host.swap_out("woken")
        assert "Active  " in host.machine.run("vmmswapctl", "list", "--columns", "state,name").stdout
        assert guest.verify().wrong_bytes == 0
        assert host.status("woken")["SwapPages"] == 0
        assert (
            "Active, all back  woken"
            in host.machine.run("vmmswapctl", "list", "--columns", "state,name").stdout
        )


# The configuration


def test_a_configuration_is_checked_before_it_is_used(host: Host) -> None:
    def check(*arguments: str) -> tuple[int, str, str]:
        done = host.machine.run("vmmswap-monitor", "--check-config", *arguments, check=False)
        return done.returncode, done.stdout, done.stderr

    host.configure("[VM tried]\nMode=quickly\n")
    for arguments in ((), ("tried",), ("another",)):
        status, _, error = check(*arguments)
        assert (status, error.count("\n")) == (78, 1)
        assert f"{CONFIG}:2: Mode=quickly: " in error
    host.configure("[Swap]\nWorkers=2\n[VM tried]\nMode=freeze\n")
    assert check() == (0, "", "")
    status, output, _ = check("tried")
    assert status == 0
    assert f"# {CONFIG}:4\nMode=freeze\n" in output
    assert f"# {CONFIG}:2\nWorkers=2\n" in output
    assert "# default\n#MaxPasses=1\n" in output
    assert check("-bad")[0] == 2


def test_a_reload_applies_what_it_can_and_shows_the_rest(host: Host) -> None:
    host.configure("[VM reloaded]\nMode=live\nWorkers=2\n")
    with host.guest("reloaded") as guest:
        before = host.pid("reloaded")
        host.configure("[VM reloaded]\nMode=freeze\nWorkers=3\n")
        host.machine.run("systemctl", "reload", "vmmswap@reloaded.service")
        host.machine.wait_for("the reload", lambda: host.has_said("was read again", VMMSWAP_VM="reloaded"))
        shown = host.machine.run("vmmswapctl", "config", "reloaded").stdout
        assert f"# {CONFIG}:2\nMode=freeze\n" in shown
        assert f"# {CONFIG}:3\nWorkers=2\n# after a restart: Workers=3\n" in shown
        assert host.swap_out("reloaded")["Mode"] == "freeze"
        host.configure("[VM reloaded]\nMode=quickly\n")
        done = host.machine.run("systemctl", "reload", "vmmswap@reloaded.service", check=False)
        assert done.returncode != 0
        lines = host.machine.run("vmmswapctl", "config", "reloaded", "--json").stdout.splitlines()
        assert {row["Key"]: row["Value"] for row in map(json.loads, lines)}["Mode"] == "freeze"
        assert host.pid("reloaded") == before
        host.machine.run("systemctl", "restart", "vmmswap@reloaded.service")  # by what was applied last
        host.wait_state("reloaded", "Active")
        assert host.swap_out("reloaded")["Mode"] == "freeze"
        assert guest.verify().wrong_bytes == 0
        host.configure("")


def test_attach_finds_the_vmm_of_a_unit(host: Host, vmm: Target) -> None:
    host.machine.run("vmmswapctl", "attach", "units", "--unit", "somebodys")
    assert host.status("units")["Pid"] == vmm.pid
    host.machine.run("vmmswapctl", "detach", "units")
    host.wait_unit("units", "inactive")
    assert "dbus.socket has 0 processes" in host.ctl("attach", "units", "--unit", "dbus.socket")
    assert "not loaded" in host.ctl("attach", "units", "--unit", "nobodys")
    assert "Give one of PID, --unit UNIT and --libvirt DOMAIN" in host.ctl("attach", "units")


# polkit

ASKED = """
import os, pty, sys, termios, time
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
seen, answered = b"", False
while True:
    try:
        piece = os.read(terminal, 4096)
    except OSError:
        break
    if not piece:
        break
    seen += piece
    if b"Password:" in seen and not answered:
        while termios.tcgetattr(terminal)[3] & termios.ECHO:
            time.sleep(0.01)  # what is typed before is thrown away
        os.write(terminal, sys.argv[1].encode() + b"\\n")
        answered = True
print(seen.decode(), "asked" if answered else "not asked")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_polkit_asks_for_a_password_on_a_terminal_unless_told_not_to(host: Host) -> None:
    if host.machine.sh("test -x /usr/lib/polkit-1/polkitd", check=False).returncode != 0:
        pytest.skip("needs polkitd")
    host.machine.sh("useradd --no-create-home nosy; echo root:open-sesame | chpasswd")
    rule = "polkit.addAdminRule(function(action, subject) { return ['unix-user:0']; });"
    host.machine.sh("mkdir -p /etc/polkit-1/rules.d; cat >/etc/polkit-1/rules.d/05-test.rules", stdin=rule)
    host.machine.sh("systemctl reset-failed polkit.service; systemctl restart polkit.service")

    def on_terminal(*command: str, typed: str) -> tuple[int, str]:
        asked = shlex.join(["python3", "-c", ASKED, typed, *command])
        done = host.machine.sh(asked, user="nosy", check=False)
        return done.returncode, done.stdout

    with host.guest("asked"):
        status, output = on_terminal("vmmswapctl", "--no-ask-password", "enable", "asked", typed="")
        assert (status, "not asked" in output) == (4, True), output
        assert "polkit wants a password" in output
        status, output = on_terminal("vmmswapctl", "enable", "asked", typed="wrong")
        assert (status, "not asked" in output) == (4, False), output
        assert host.status("asked")["State"] == "Ready"
        status, output = on_terminal("vmmswapctl", "enable", "asked", typed="open-sesame")
        assert (status, "not asked" in output) == (0, False), output
        assert host.status("asked")["State"] == "Active"
        status, output = on_terminal("vmmswapctl", "status", "asked", typed="")  # needs no right
        assert (status, "not asked" in output) == (0, True), output
