# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswapd as systemd and the bus start it, sandboxed as shipped, with Debian's own polkit."""

from collections.abc import Iterator

import pytest

from tests.support.host import HOST, installed, recording_vm
from tests.support.machine import Machine
from vmmswap.message_ids import ACCESS_DENIED
from vmmswap.names import MANAGER_INTERFACE, bus_name_of, object_path_of

__all__ = ["installed"]

RULES = "/etc/polkit-1/rules.d/10-vmmswap-test.rules"
RESTART_POLKIT = "systemctl reset-failed polkit.service; systemctl restart polkit.service"


@pytest.fixture
def web(installed: Machine) -> Iterator[Machine]:
    """A VM called web, owned by the user bin."""
    with recording_vm(installed, "web", 2):
        yield installed


@pytest.fixture
def nobody_is_allowed(installed: Machine) -> Iterator[Machine]:
    """A rule that allows everything of ours to the group of the user nobody."""
    rule = (
        'polkit.addRule(function(action, subject) { if (action.id.indexOf("org.vmmswap.") == 0 && '
        'subject.isInGroup("nogroup")) return polkit.Result.YES; });'
    )
    installed.sh(f"mkdir -p {RULES.rsplit('/', 1)[0]} && cat >{RULES}", stdin=rule)
    installed.sh(RESTART_POLKIT)
    yield installed
    installed.sh(f"rm {RULES}")
    installed.sh(RESTART_POLKIT)


def error_of(machine: Machine, *call: str, user: str) -> str:
    """NAME: TEXT of the error of dbus-send's call."""
    destination, path, interface, member, *arguments = call
    command = f"dbus-send --system --print-reply --dest={destination} {path} {interface}.{member} "
    answer = machine.sh(command + " ".join(arguments), user=user, check=False)
    assert answer.returncode != 0
    return answer.stderr.strip().removeprefix("Error ")


def test_the_bus_starts_it_for_anyone_who_reads(installed: Machine) -> None:
    assert installed.call(*HOST, "ListVMs", user="nobody") == [[]]
    assert installed.unit("vmmswapd.service", "ActiveState", "SubState") == {
        "ActiveState": "active",
        "SubState": "running",
    }


def test_prepare_starts_the_socket(installed: Machine) -> None:
    for name in ("plain", "a.b-c", "9x"):
        [path] = installed.call(*HOST, "Prepare", "s", name)
        assert path == f"/run/vmmswap/{name}.sock"
        assert installed.sh(f"stat -c '%U %G %a %F' {path}").stdout == "root vmmswap 660 socket\n"
        assert installed.unit(f"vmmswap@{name}.socket", "ActiveState") == {"ActiveState": "active"}
        assert installed.call(*HOST, "Prepare", "s", name) == [path]


def test_prepare_tells_why_systemd_could_not(installed: Machine) -> None:
    installed.sh("install -d /run/vmmswap/taken.sock/in-the-way")
    text = error_of(installed, *HOST, "Prepare", "string:taken", user="root")
    assert text.startswith(
        "org.vmmswap.Error.NotSupported: systemd could not start vmmswap@taken.socket: failed"
    )


def test_polkit_denies_what_no_rule_allows(web: Machine) -> None:
    for destination in ("org.vmmswap", bus_name_of("web")):
        vm = (destination, object_path_of("web"), MANAGER_INTERFACE)
        for member in ("Enable", "Disable", "StartPageFaultLogging", "Exit"):
            text = error_of(web, *vm, member, user="nobody")
            assert text.startswith("org.vmmswap.Error.AccessDenied: uid 65534 may not do this"), text
            assert "polkit" in text
        assert web.call(*vm, "Status", user="nobody")[0]["State"]["data"] == "Ready"
    assert "AccessDenied" in error_of(web, *HOST, "Prepare", "string:mine", user="nobody")
    denials = web.journal(
        "--unit=vmmswapd.service", MESSAGE_ID=ACCESS_DENIED, VMMSWAP_ACTION="org.vmmswap.control"
    )
    assert {entry["VMMSWAP_CALLER_UID"] for entry in denials} == {"65534"}
    assert all(entry["SYSLOG_IDENTIFIER"] == "vmmswapd" for entry in denials)
    assert " org.vmmswap.control for the VM web: polkit " in denials[0]["MESSAGE"]


def test_polkit_lets_a_vms_owner_do_all_with_it(web: Machine) -> None:
    for destination in ("org.vmmswap", bus_name_of("web")):
        vm = (destination, object_path_of("web"), MANAGER_INTERFACE)
        for member in ("Enable", "Disable", "StartPageFaultLogging", "StopPageFaultLogging"):
            web.call(*vm, member, user="bin")
    web.call(*vm, "Exit", user="bin")


def test_a_polkit_rule_allows(web: Machine, nobody_is_allowed: Machine) -> None:
    for destination in ("org.vmmswap", bus_name_of("web")):
        vm = (destination, object_path_of("web"), MANAGER_INTERFACE)
        nobody_is_allowed.call(*vm, "Enable", user="nobody")
        assert web.call(*vm, "Status")[0]["State"]["data"] == "Active"
        nobody_is_allowed.call(*vm, "Disable", user="nobody")
        assert "AccessDenied" in error_of(web, *vm, "Enable", user="daemon")


def test_a_prepared_socket_belongs_to_its_caller_alone(nobody_is_allowed: Machine) -> None:
    machine = nobody_is_allowed
    [path] = machine.call(*HOST, "Prepare", "s", "mine", user="nobody")
    assert machine.sh(f"stat -c '%U %G %a' {path}").stdout == "nobody vmmswap 600\n"
    machine.sh("groupadd --force nogroup && usermod --append --groups nogroup games")
    text = error_of(machine, *HOST, "Prepare", "string:mine", user="games")
    assert text == f"org.vmmswap.Error.AccessDenied: {path} was prepared for uid 65534: choose another name"
    assert machine.call(*HOST, "Prepare", "s", "mine") == [path]
    assert machine.sh(f"stat -c %U {path}").stdout == "nobody\n"


def test_polkit_cannot_allow_to_attach_what_is_not_the_callers(nobody_is_allowed: Machine) -> None:
    text = error_of(nobody_is_allowed, *HOST, "Attach", "string:theirs", "uint32:1", user="nobody")
    assert text.startswith("org.vmmswap.Error.AccessDenied: uid 65534 may not attach to process 1,")
    [denial, *_] = nobody_is_allowed.journal(
        MESSAGE_ID=ACCESS_DENIED, VMMSWAP_ACTION="org.vmmswap.attach", _UID="0"
    )
    assert denial["VMMSWAP_CALLER_UID"] == "65534"
    assert nobody_is_allowed.unit("vmmswap@theirs.socket", "ActiveState") == {"ActiveState": "inactive"}


def test_it_stays_for_a_prepared_socket_and_leaves_without(installed: Machine) -> None:
    installed.sh("systemctl stop vmmswapd.service 'vmmswap@*.socket' && rm -rf /run/vmmswap/taken.sock")
    installed.sh(
        "mkdir -p /run/systemd/system/vmmswapd.service.d && printf '[Service]\\nExecStart=\\n"
        "ExecStart=/usr/bin/vmmswapd --idle-exit=0.3\\n' >/run/systemd/system/vmmswapd.service.d/idle.conf"
        " && systemctl daemon-reload"
    )
    installed.call(*HOST, "Prepare", "s", "waiting")
    pid = installed.unit("vmmswapd.service", "MainPID")
    installed.sh("sleep 1.2")  # four periods, of which each would be enough to end it
    assert installed.unit("vmmswapd.service", "MainPID") == pid
    installed.sh("systemctl stop vmmswap@waiting.socket")
    ended = {"ActiveState": "inactive", "Result": "success"}
    installed.wait_for(
        "vmmswapd to leave", lambda: installed.unit("vmmswapd.service", "ActiveState", "Result") == ended
    )
    assert installed.call(*HOST, "ListVMs") == [[]]
