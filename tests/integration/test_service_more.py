# SPDX-License-Identifier: GPL-2.0-or-later
"""What docs/service.md promises an operator: short memory, order of shutdown, fields, traces, rights."""

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import installation, service
from tests.support.machine import Machine
from tests.support.service import Service
from vmmswap import message_ids
from vmmswap import trace_format as tf
from vmmswap.names import bus_name_of, object_path_of

MIB = 1 << 20
RULES = "/etc/polkit-1/rules.d/10-vmmswap-test.rules"
DOCUMENT = (Path(__file__).parents[2] / "docs" / "service.md").read_text()


@pytest.fixture(scope="module")
def host(tree: Path) -> Iterator[Service]:
    if reason := Machine.missing():
        pytest.skip(reason)
    with Machine(binds={installation.INSIDE: str(tree)}) as machine:
        yield service.install(machine)


class MemoryLimit:
    """For one unit's processes: systemd's MemoryMax=, or by hand where the memory controller is v1's."""

    def __init__(self, host: Service) -> None:
        """Before the monitor starts: it looks for the hierarchies only then."""
        self._machine = host.machine
        self._unit = ""
        self._group = f"/run/memory/vmmswap-test-{uuid.uuid4().hex[:8]}"  # the host's too, so not one for all
        self._is_v2 = "memory" in host.machine.path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
        if not self._is_v2:
            host.machine.sh("mkdir /run/memory && mount -t cgroup -o memory none /run/memory")
            host.machine.sh(f"mkdir {self._group}")

    def adopt(self, unit: str) -> None:
        self._unit = unit
        if not self._is_v2:
            pid = self._machine.unit(unit, "MainPID")["MainPID"]
            self._machine.sh(f"echo {pid} >{self._group}/cgroup.procs")

    def set(self, limit_bytes: int | None) -> None:
        if self._is_v2:
            text = "infinity" if limit_bytes is None else str(limit_bytes)
            self._machine.run("systemctl", "set-property", "--runtime", self._unit, f"MemoryMax={text}")
        else:
            text = "-1" if limit_bytes is None else str(limit_bytes)
            self._machine.sh(f"echo {text} >{self._group}/memory.limit_in_bytes")

    def remove(self) -> None:
        """Once its processes have ended."""
        if not self._is_v2:
            self._machine.sh(f"rmdir {self._group} && umount /run/memory && rmdir /run/memory")


@pytest.fixture
def limit(host: Service) -> Iterator[MemoryLimit]:
    made = MemoryLimit(host)
    yield made
    made.remove()


def test_a_stop_that_lacks_memory_says_so_and_serves(host: Service, limit: MemoryLimit) -> None:
    # Longer without an extension would be SIGKILL.
    host.drop_in("short", "TimeoutStopSec=1s")
    with host.guest("short", ("64M",), mix="random=100") as guest:
        limit.adopt(guest.unit)
        host.swap_out("short")
        limit.set(8 * MIB)  # no more than the monitor leaves untouched, so nothing depends on its speed
        host.machine.run("systemctl", "stop", "--no-block", "vmmswap@short.service")

        def short() -> dict[str, str] | None:
            shown = host.machine.unit("vmmswap@short.service", "ActiveState", "StatusText", "MainPID")
            assert shown["ActiveState"] != "inactive", host.log("short")
            return shown if "not enough memory" in shown["StatusText"] else None

        shown = host.machine.wait_for("the status line to say so", short)
        assert shown["StatusText"].startswith("stopping: ")
        assert guest.touch(0, 100).wrong_bytes == 0
        host.machine.sh("sleep 2")  # twice the limit of the unit, which must not end it
        assert host.wait_unit("short", "deactivating")["MainPID"] == shown["MainPID"]
        assert host.machine.journal(VMMSWAP_VM="short", MESSAGE_ID=message_ids.LOW_MEMORY)
        limit.set(None)
        assert host.wait_unit("short", "inactive")["Result"] == "success"
        assert guest.verify().wrong_bytes == 0


def test_a_vmms_unit_as_documented_ends_before_its_monitor(host: Service) -> None:
    found = re.search(r"^    (Wants=vmmswap@web.*)\n    (After=vmmswap@web.*)$", DOCUMENT, re.MULTILINE)
    assert found
    # As at a shutdown, one transaction stops both.
    for unit, order in (("guest-web.service", f"{found[1]}\n{found[2]}\n"), ("vmmswap@web.service", "")):
        directory = host.machine.path(f"/etc/systemd/system/{unit}.d")
        directory.mkdir()
        (directory / "order.conf").write_text(f"[Unit]\n{order}PartOf=down.target\n")
    host.machine.path("/etc/systemd/system/down.target").write_text("[Unit]\nDescription=Both\n")
    host.machine.run("systemctl", "daemon-reload")
    host.machine.run("systemctl", "start", "down.target")
    with host.guest("web"):
        host.swap_out("web")
        host.machine.run("systemctl", "stop", "down.target")
    said = [str(entry["MESSAGE"]) for entry in host.machine.journal(_PID="1")]
    stopped = [i for i, text in enumerate(said) if text.startswith("Stopped guest-web.service")]
    stopping = [i for i, text in enumerate(said) if text.startswith("Stopping vmmswap@web.service")]
    assert stopped and all(i > stopped[0] for i in stopping)
    assert host.machine.journal(VMMSWAP_VM="web", MESSAGE_ID=message_ids.VM_GONE)
    match = {"VMMSWAP_VM": "web", "VMMSWAP_OPERATION": "swap-in"}
    assert host.machine.journal(MESSAGE_ID=message_ids.OPERATION_FINISHED, **match) == []


def test_the_end_of_an_operation_has_its_counts_and_its_duration(host: Service) -> None:
    with host.guest("counted"):
        status = host.swap_out("counted")
    match = {"VMMSWAP_VM": "counted", "MESSAGE_ID": message_ids.OPERATION_FINISHED}
    [entry] = host.machine.journal(**match, VMMSWAP_OPERATION="swap-out")
    assert int(entry["SWAP_PAGES"]) == status["SwapPages"]
    for field in ("DURATION_MS", "RESIDENT_PAGES", "PINNED_PAGES", "PAUSE_US"):
        assert int(entry[field]) >= 0, field


def test_a_swap_directory_of_ones_own_that_is_too_small(host: Service) -> None:
    """Usable with the drop-in that the document shows; full, the journal says cause and remedy."""
    host.machine.sh("mkdir -p /srv/swap && mount -t tmpfs -o size=4M tmpfs /srv/swap")
    config = host.machine.path("/etc/vmmswap.conf.d/small.conf")
    config.parent.mkdir(exist_ok=True)
    config.write_text("[VM small]\nSwapDirectory=/srv/swap\n")
    found = re.search(r"^    (ReadWritePaths=/srv/swap)$", DOCUMENT, re.MULTILINE)
    assert found
    host.drop_in("small", found[1])
    with host.guest("small", mix="random=100") as guest:
        host.manager("small", "Enable")

        def limited() -> dict[str, object] | None:
            status = host.status("small")
            return status if status["LimitedBy"] and not status["Operation"] else None

        status = host.machine.wait_for("the limit", limited)
        assert (status["State"], status["LimitedBy"], status["Error"]) == ("Active", "no-space", "")
        assert guest.verify().wrong_bytes == 0
        host.swap_in("small")
        assert guest.verify().wrong_bytes == 0
    [entry] = host.machine.journal(VMMSWAP_VM="small", MESSAGE_ID=message_ids.OPERATION_LIMITED)
    assert (entry["VMMSWAP_OPERATION"], entry["LIMITED_BY"]) == ("swap-out", "no-space")
    assert "/srv/swap" in str(entry["MESSAGE"])
    host.machine.sh("umount /srv/swap && rmdir /srv/swap")
    config.unlink()


def test_a_page_fault_trace_goes_through_the_journal(host: Service) -> None:
    with host.guest("traced") as guest:
        host.manager("traced", "StartPageFaultLogging")
        host.swap_out("traced")
        assert guest.verify(by="main").wrong_bytes == 0
        status = host.status("traced")
        host.manager("traced", "StopPageFaultLogging")
    lines = host.machine.sh("journalctl --sync; vmmswapctl trace export traced --from journal").stdout
    header, *faults = map(json.loads, lines.splitlines())
    assert sum(region["len"] for region in header["regions"]) == 32 * MIB
    assert len(faults) >= status["CopiedPages"] > 1000
    assert {tuple(fault) for fault in faults} == {("elapsed_nanos", "address", "id_uffd")}
    batches = host.machine.journal(VMMSWAP_VM="traced", MESSAGE_ID=message_ids.TRACE_BATCH)
    assert max(len(tf.decode_batch(str(entry[tf.FIELD_FAULTS]))) for entry in batches) <= tf.BATCH_FAULTS


@pytest.fixture
def operators(host: Service) -> Iterator[Service]:
    """The documented rule, for a group of the user games."""
    found = re.search(r"^    // /etc/polkit-1/rules.d/.*\n((?:    .*\n)+)", DOCUMENT, re.MULTILINE)
    assert found
    if host.machine.sh("test -x /usr/lib/polkit-1/polkitd", check=False).returncode != 0:
        pytest.skip("needs polkitd")
    host.machine.sh("groupadd vm-operators && usermod --append --groups vm-operators games")
    host.machine.sh(f"mkdir -p $(dirname {RULES}) && cat >{RULES}", stdin=found[1])
    host.machine.sh("systemctl reset-failed polkit.service; systemctl restart polkit.service")
    yield host
    host.machine.sh(f"rm {RULES}; gpasswd --delete games vm-operators; groupdel vm-operators")


def test_the_documented_rule_allows_a_group_and_what_it_names(operators: Service) -> None:
    with operators.guest("ruled") as guest:
        assert operators.dbus_send("ruled", "Enable", "games") == ""
        operators.wait_state("ruled", "Active")
        assert "AccessDenied" in operators.dbus_send("ruled", "Exit", "games")
        assert "AccessDenied" in operators.dbus_send("ruled", "Disable", "nobody")
        assert operators.dbus_send("ruled", "Disable", "games") == ""
        operators.wait_state("ruled", "Ready")
        assert guest.verify().wrong_bytes == 0


def test_a_started_service_owns_its_name(host: Service) -> None:
    for name in ("ready1", "ready2", "ready3"):
        host.machine.run("systemctl", "start", f"vmmswap@{name}.service")
        host.machine.busctl("introspect", bus_name_of(name), object_path_of(name))
        host.machine.run("systemctl", "stop", f"vmmswap@{name}.service", f"vmmswap@{name}.socket")


def test_the_process_has_what_the_unit_asks_for(host: Service) -> None:
    with host.guest("asked"):
        host.swap_out("asked")
        process = host.machine.path(f"/proc/{host.pid('asked')}")
        limits = (process / "limits").read_text()
        assert re.search(r"^Max core file size +1 +1 ", limits, re.MULTILINE)
        # Not what /proc says of it: in a container systemd may have no right to lower it.
        assert host.machine.unit("vmmswap@asked.service", "OOMScoreAdjust") == {"OOMScoreAdjust": "-900"}
        assert re.search(r"^VmSwap:\s+0 kB$", (process / "status").read_text(), re.MULTILINE)
        state = host.machine.path("/var/lib/vmmswap/asked")
        names = {path.name for path in state.iterdir()}
        assert (state.stat().st_mode & 0o777, names - {"asked.written", "asked.written.new"}) == (
            0o700,
            set(),
        )
