# SPDX-License-Identifier: GPL-2.0-or-later
"""Stops, restarts, crashes, bad configuration, a lost bus: with memory out, and no byte of the guest lost."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import installation, service
from tests.support.machine import Machine
from tests.support.service import Service
from vmmswap import message_ids


@pytest.fixture(scope="module")
def host(tree: Path) -> Iterator[Service]:
    if reason := Machine.missing():
        pytest.skip(reason)
    with Machine(binds={installation.INSIDE: str(tree)}) as machine:
        yield service.install(machine)


def test_stop_brings_memory_in_first(host: Service) -> None:
    with host.guest("stopped") as guest:
        host.swap_out("stopped")
        guest.work_start()
        host.machine.run("systemctl", "stop", "vmmswap@stopped.service")
        shown = host.wait_unit("stopped", "inactive")
        guest.work_stop()
        assert (shown["Result"], shown["ExecMainStatus"]) == ("success", "0")
        assert guest.verify().wrong_bytes == 0


@pytest.mark.slow
def test_stop_takes_longer_than_its_limit_where_it_must(host: Service) -> None:
    host.drop_in("large", "TimeoutStopSec=400ms")
    with host.guest("large", ("1G",), mix="random=100") as guest:
        host.swap_out("large")
        begin = time.monotonic()
        host.machine.run("systemctl", "stop", "vmmswap@large.service")
        took_s = time.monotonic() - begin
        shown = host.wait_unit("large", "inactive")
        assert shown["Result"] == "success", f"after {took_s} s: {shown}"
        assert took_s > 0.4  # or the limit was never reached
        assert guest.verify().wrong_bytes == 0


def test_restart_leaves_memory_out(host: Service) -> None:
    with host.guest("again") as guest:
        pages = host.swap_out("again")["SwapPages"]
        before = host.pid("again")
        host.machine.run("systemctl", "restart", "vmmswap@again.service")
        found = host.wait_state("again", "Active")
        assert host.pid("again") != before
        assert found["SwapPages"] == pages
        assert found["Restarts"] == 1
        assert guest.memory().resident_bytes < 1 << 20
        assert guest.verify().wrong_bytes == 0
        host.swap_in("again")
        assert guest.verify().wrong_bytes == 0


@pytest.mark.parametrize("how", ["KILL", "SEGV", "ABRT"])
def test_a_dead_monitor_is_restarted_and_goes_on(host: Service, how: str) -> None:
    name = f"dead-{how}"
    with host.guest(name) as guest:
        guest.fork(1)
        host.swap_out(name)
        guest.work_start()
        before = host.pid(name)
        host.machine.run("systemctl", "kill", "--kill-who=main", f"--signal={how}", f"vmmswap@{name}.service")
        host.machine.wait_for("a new monitor", lambda: host.pid(name) not in (0, before))
        guest.wait_work(1000)
        guest.work_stop()
        assert host.wait_state(name, "Active")["Restarts"] == 1
        assert guest.verify().wrong_bytes == 0
        host.swap_in(name)
        assert guest.verify().wrong_bytes == 0
    assert host.machine.journal(VMMSWAP_VM=name, MESSAGE_ID=message_ids.MONITOR_RESTARTED)


def test_a_hung_monitor_is_killed_by_the_watchdog(host: Service) -> None:
    host.drop_in("hung", "WatchdogSec=2s")
    with host.guest("hung") as guest:
        host.swap_out("hung")
        before = host.pid("hung")
        host.machine.run("systemctl", "kill", "--kill-who=main", "--signal=STOP", "vmmswap@hung.service")
        host.machine.wait_for("a new monitor", lambda: host.pid("hung") not in (0, before))
        assert guest.verify().wrong_bytes == 0
        host.wait_state("hung", "Active")


def test_bad_configuration_is_said_in_one_line_and_not_tried_again(host: Service) -> None:
    config = host.machine.path("/etc/vmmswap.conf.d/bad.conf")
    config.parent.mkdir(exist_ok=True)
    config.write_text("[VM misconfigured]\nMode=quickly\n")
    host.machine.run("systemctl", "start", "vmmswap@misconfigured.service", check=False)
    shown = host.wait_unit("misconfigured", "failed")
    assert (shown["ExecMainStatus"], shown["NRestarts"]) == ("78", "0")
    text = host.machine.run("systemctl", "status", "vmmswap@misconfigured.service", check=False).stdout
    assert "/etc/vmmswap.conf.d/bad.conf:2: Mode=quickly: " in text
    assert "Traceback" not in text
    config.unlink()
    host.machine.run("systemctl", "reset-failed", "vmmswap@misconfigured.service")
    host.machine.run("systemctl", "stop", "vmmswap@misconfigured.socket")


@pytest.mark.parametrize(
    ("name", "setting", "reason"),
    [
        ("nowhere", "SwapDirectory=/no/such/directory", "/no/such/directory does not exist"),
        ("no-unnamed-files", "SwapDirectory=/dev/mqueue", "/dev/mqueue has no unnamed files"),
        ("-bad", "", "'-bad' is not a VM name"),
    ],
)
def test_a_monitor_that_cannot_start_says_why_and_stays_down(
    host: Service, name: str, setting: str, reason: str
) -> None:
    config = host.machine.path("/etc/vmmswap.conf.d/start.conf")
    config.parent.mkdir(exist_ok=True)
    config.write_text(f"[VM {name}]\n{setting}\n" if setting else "")
    unit = f"vmmswap@{name}.service"
    assert host.machine.run("systemctl", "start", unit, check=False).returncode != 0
    assert host.wait_unit(name, "failed")["NRestarts"] == "0"
    text = host.machine.run("systemctl", "status", unit, check=False).stdout
    assert reason in text
    assert "Traceback" not in text
    config.unlink()
    host.machine.run("systemctl", "reset-failed", unit)
    host.machine.run("systemctl", "stop", f"vmmswap@{name}.socket")


def test_bad_configuration_with_memory_out_keeps_the_last_good_one(host: Service) -> None:
    config = host.machine.path("/etc/vmmswap.conf.d/spoilt.conf")
    config.parent.mkdir(exist_ok=True)
    with host.guest("spoilt") as guest:
        host.swap_out("spoilt")
        config.write_text("[VM spoilt]\nNoSuchKey=1\n")
        host.machine.run("systemctl", "restart", "vmmswap@spoilt.service")
        host.wait_state("spoilt", "Active")
        assert guest.verify().wrong_bytes == 0
        config.unlink()
    entries = host.machine.journal(VMMSWAP_VM="spoilt", MESSAGE_ID=message_ids.CONFIGURATION_ERROR)
    assert any("NoSuchKey" in str(entry["MESSAGE"]) for entry in entries)


def test_the_bus_restarts(host: Service) -> None:
    with host.guest("busless") as guest:
        host.swap_out("busless")
        guest.work_start()
        before = host.pid("busless")
        host.machine.run("systemctl", "stop", "dbus.socket", "dbus.service")
        guest.wait_work(1000)
        host.machine.run("systemctl", "start", "dbus.socket", "dbus.service")
        host.machine.wait_for("its name", lambda: _answers(host, "busless"))
        guest.work_stop()
        assert host.status("busless")["State"] == "Active"
        assert host.pid("busless") == before
        assert guest.verify().wrong_bytes == 0
        host.machine.wait_for("vmmswapd", lambda: _answers(host, "busless", direct=False))


def _answers(host: Service, name: str, direct: bool = True) -> bool:
    destination = service.bus_name_of(name) if direct else "org.vmmswap"
    path = service.object_path_of(name)
    return host.machine.busctl("introspect", destination, path, check=False).returncode == 0


def test_the_system_manager_re_executes_itself(host: Service) -> None:
    with host.guest("manager") as guest:
        host.swap_out("manager")
        host.machine.run("systemctl", "daemon-reexec")
        host.machine.run("systemctl", "restart", "vmmswap@manager.service")
        host.wait_state("manager", "Active")
        assert guest.verify().wrong_bytes == 0


def test_a_stopped_socket_does_not_stop_its_monitor(host: Service) -> None:
    with host.guest("socketless") as guest:
        host.swap_out("socketless")
        host.machine.run("systemctl", "stop", "vmmswap@socketless.socket")
        assert host.status("socketless")["State"] == "Active"
        assert guest.verify().wrong_bytes == 0
