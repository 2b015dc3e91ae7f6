# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap installed by `make install` on a running system: both bus names, signals, journal, rights."""

import json
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import installation, service
from tests.support.machine import Machine
from tests.support.service import Service
from vmmswap import message_ids
from vmmswap.names import HOST_INTERFACE, HOST_PATH, MANAGER_INTERFACE, bus_name_of, object_path_of

HOST = ("org.vmmswap", HOST_PATH, HOST_INTERFACE)
STRANGE_NAMES = ("1a.b-c", "_", "9", "x" * 64)


@pytest.fixture(scope="module")
def host(tree: Path) -> Iterator[Service]:
    if reason := Machine.missing():
        pytest.skip(reason)
    with Machine(binds={installation.INSIDE: str(tree)}) as machine:
        yield service.install(machine)


@contextmanager
def signals(host: Service, match: str, is_last: Callable[[Any], bool]) -> Iterator[list[Any]]:
    """The signals that match, as busctl prints them; after the block, all up to the last one."""
    seen: list[Any] = []
    command = f'exec busctl --json=short --match="type=signal,{match}" monitor'
    unit = "signals.service"
    monitor = host.machine.popen(command, unit=unit, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert monitor.stderr is not None and monitor.stdout is not None
    with monitor:
        assert "Monitoring bus message stream" in monitor.stderr.readline()
        output = monitor.stdout
        reader = threading.Thread(
            target=lambda: seen.extend(json.loads(line) for line in output if line.startswith("{"))
        )
        reader.start()
        try:
            yield seen
            host.machine.wait_for("the last signal", lambda: seen and is_last(seen[-1]))
        finally:
            host.machine.run("systemctl", "stop", unit)
            reader.join()


def test_two_vms_out_and_in_through_both_names(host: Service) -> None:
    with host.guest("a") as one, host.guest("b", ("16M", "16M")) as two:
        assert {name for name, _, _ in host.machine.call(*HOST, "ListVMs")[0]} == {"a", "b"}
        one.work_start()
        host.manager("a", "Enable", direct=False)
        host.manager("b", "Enable")
        host.wait_state("a", "Active")
        out = host.wait_state("b", "Active")
        assert out["SwapPages"] > 0
        assert host.machine.path("/run/vmmswap/swap-outs/0").exists()  # for SwapOutsMax=
        host.machine.wait_for("a shared look", host.machine.path("/run/vmmswap/swap-outs/fds-1").exists)
        assert two.memory().resident_bytes < 1 << 20
        assert two.verify().wrong_bytes == 0
        one.work_stop()
        assert one.verify().wrong_bytes == 0
        host.manager("b", "Disable", direct=False)
        host.manager("a", "Disable")
        host.wait_state("a", "Ready")
        host.wait_state("b", "Ready")
        assert (one.verify().wrong_bytes, two.verify().wrong_bytes) == (0, 0)


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_strange_names(host: Service, name: str) -> None:
    with host.guest(name, ("4M",)) as guest:
        assert host.swap_out(name)["Name"] == name
        assert host.status(name, direct=False)["State"] == "Active"
        assert guest.verify().wrong_bytes == 0


def state_in(message: dict[str, Any]) -> str:
    state: str = message["payload"]["data"][0]["State"]["data"]
    return state


def is_active(message: dict[str, Any]) -> bool:
    return state_in(message) == "Active"


@pytest.mark.parametrize("direct", [True, False])
def test_status_changed_has_path_and_content(host: Service, direct: bool) -> None:
    with host.guest("a") as guest:
        sender = bus_name_of("a") if direct else "org.vmmswap"
        host.status("a", direct=direct)  # all that came before this has been passed on
        with signals(host, f"member=StatusChanged,sender={sender}", is_active) as seen:
            host.swap_out("a")
        assert {message["path"] for message in seen} == {object_path_of("a")}
        states = [state_in(message) for message in seen]
        assert states[0] == "InProgress"
        assert states[-1] == "Active"
        assert seen[-1]["payload"]["data"][0].keys() == host.status("a").keys()
        assert guest.verify().wrong_bytes == 0


def test_operations_are_in_the_journal_with_their_fields(host: Service) -> None:
    with host.guest("logged"):
        host.swap_out("logged")
        host.swap_in("logged")
    for operation in ("swap-out", "swap-in"):
        match = {"VMMSWAP_VM": "logged", "VMMSWAP_OPERATION": operation}
        (start,) = host.machine.journal(MESSAGE_ID=message_ids.OPERATION_STARTED, **match)
        (end,) = host.machine.journal(MESSAGE_ID=message_ids.OPERATION_FINISHED, **match)
        assert start["_SYSTEMD_UNIT"] == end["_SYSTEMD_UNIT"] == "vmmswap@logged.service"
        assert int(start["__MONOTONIC_TIMESTAMP"]) <= int(end["__MONOTONIC_TIMESTAMP"])


def test_a_user_without_the_right(host: Service) -> None:
    with host.guest("a") as guest:
        host.swap_out("a")
        before = host.status("a")
        for member in ("Enable", "Disable", "Exit"):
            assert host.dbus_send("a", member, "nobody").startswith("org.vmmswap.Error.AccessDenied: ")
        assert host.dbus_send("a", "Status", "nobody") == ""
        after = host.status("a")
        assert (after["State"], after["SwapPages"]) == ("Active", before["SwapPages"])
        denied = host.machine.journal(MESSAGE_ID=message_ids.ACCESS_DENIED)
        assert any("65534" in str(entry["MESSAGE"]) for entry in denied)
        assert guest.verify().wrong_bytes == 0


def test_vmmswapd_killed_and_back(host: Service) -> None:
    with host.guest("a") as one, host.guest("b") as two:
        host.swap_out("a")
        listed = host.machine.call(*HOST, "ListVMs")
        pids = (host.pid("a"), host.pid("b"))
        one.work_start()
        host.machine.run("systemctl", "kill", "--signal=KILL", "vmmswapd.service")
        # A call that meets the dead one fails; those that come later start the next, which finds all VMs.
        host.machine.wait_for(
            "vmmswapd", lambda: host.machine.busctl("call", *HOST, "ListVMs", check=False).stdout
        )
        assert host.machine.call(*HOST, "ListVMs") == listed
        one.wait_work(1000)
        one.work_stop()
        assert (host.pid("a"), host.pid("b")) == pids
        assert host.status("a", direct=False)["State"] == "Active"
        assert (one.verify().wrong_bytes, two.verify().wrong_bytes) == (0, 0)


def test_the_vms_end_ends_its_monitor_and_frees_all(host: Service) -> None:
    with host.guest("a") as guest:
        host.swap_out("a")
        host.machine.run("vmmswapctl", "flush", "a")  # what stays on RAM makes no ledger
        guest.kill()
    assert host.wait_unit("a", "inactive")["Result"] == "success"
    assert [path.name for path in host.machine.path("/var/lib/vmmswap/a").iterdir()] == ["a.written"]
    with host.guest("a") as again:
        assert again.verify().wrong_bytes == 0


def test_the_monitor_is_locked_and_confined(host: Service) -> None:
    with host.guest("a"):
        text = host.machine.path(f"/proc/{host.pid('a')}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        assert int(fields["VmLck"].split()[0]) > 0
        assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
        assert fields["CapEff"] == fields["CapBnd"]
        assert int(fields["CapBnd"], 16).bit_count() == 5


def test_uninstall_brings_memory_in_and_leaves_nothing(host: Service, tree: Path) -> None:
    del host  # for its skip
    with Machine(binds={installation.INSIDE: str(tree)}) as machine:
        other = service.install(machine)
        other.machine.run("systemctl", "start", "vmmswap@a.socket")
        options = {"regions": ("32M",), "socket": Path("/run/vmmswap/a.sock")}
        with service.GuestInside(machine, "guest-a.service", (), **options) as guest:
            guest.wait_ready()
            guest.fill()
            other.swap_out("a")
            installation.make_inside(machine, "uninstall")
            assert guest.verify().wrong_bytes == 0
        assert not machine.path("/var/lib/vmmswap").exists()
        assert (
            machine.run("systemctl", "list-units", "--all", "--no-legend", "vmmswap*@*", "vmmswapd*").stdout
            == ""
        )


FLOOD = """
clients=
for client in {{1..10}}; do
    (for call in {{1..100}}; do busctl --json=short call {call} Status >/dev/null || exit 1; done) &
    clients="$clients $!"
done
for client in $clients; do wait $client || exit 1; done
"""


def test_a_flood_of_calls_leaves_fault_service_alone(host: Service) -> None:
    """1000 calls from 10 clients: the same page faults as before them take about as long as before."""
    config = host.machine.path("/etc/vmmswap.conf.d/flooded.conf")
    config.parent.mkdir(exist_ok=True)
    config.write_text("[VM flooded]\nWakePrefetch=no\n")  # else the second round has few page faults
    with host.guest("flooded") as guest:
        medians = {}
        for calm in (True, False):
            host.swap_out("flooded")
            if not calm:
                call = shlex.join([bus_name_of("flooded"), object_path_of("flooded"), MANAGER_INTERFACE])
                flood = host.machine.popen(FLOOD.format(call=call))
            assert guest.verify(by="main").wrong_bytes == 0
            found = host.status("flooded")
            assert found["CopiedPages"] > 1000
            medians[calm] = found["FaultP50Us"]
        assert flood.wait(120) == 0
        # The clients use both CPUs of a small machine, and the histogram's steps are coarse.
        assert medians[False] <= 5 * max(medians[True], 20), medians
