# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswapctl as people run it, on a real bus, against real Manager objects of VMs that do what tests say."""

import asyncio
import contextlib
import dataclasses
import json
import os
import pty
import pwd
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable

import pytest

from tests.support.bus import PrivateBus, private_bus  # noqa: F401  a fixture
from vmmswap.bus.connection import Connection, Match
from vmmswap.bus.dbus import plain
from vmmswap.bus.dispatch import Call
from vmmswap.bus.interface import HOST, Interface
from vmmswap.bus.manager import publish
from vmmswap.errors import AccessDeniedError, BusyError
from vmmswap.handoff.messages import Attach, parse
from vmmswap.host.attach_order import attach_message
from vmmswap.names import BUS_NAME, HOST_PATH, object_path_of
from vmmswap.status import KEYS, Operation, State, Status

DEADLINE_S = 60


class ScriptedVm:
    """A VM that accepts orders at once, and ends its operations when the test says so."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.owner_uid = os.geteuid()
        self.orders: list[str] = []
        self.ordered = asyncio.Event()
        self.refusal: Exception | None = None
        self._status = Status(
            name=name,
            pid=4242,
            owner_uid=self.owner_uid,
            origin="hand-off",
            total_pages=1024,
            resident_pages=1024,
            processes=3,
        )
        self._listeners: list[Callable[[Status], None]] = []

    def status(self) -> Status:
        return self._status

    async def refresh(self) -> None:
        """All figures are known."""

    def become(self, **changes) -> None:
        self._status = dataclasses.replace(self._status, **changes)
        for listener in self._listeners:
            listener(self._status)

    def subscribe(self, listener: Callable[[Status], None]) -> None:
        self._listeners.append(listener)

    def _order(self, order: str, operation: Operation) -> None:
        if self.refusal:
            raise self.refusal
        self.orders.append(order)
        if operation:
            self.become(state=State.IN_PROGRESS, operation=operation, progress_pages=0, error="")
        self.ordered.set()

    async def enable(self) -> None:
        self._order("enable", Operation.SWAP_OUT)

    async def disable(self) -> None:
        self._order("disable", Operation.SWAP_IN)

    async def trim(self) -> None:
        self._order("trim", Operation.TRIM)

    async def flush(self) -> None:
        self._order("flush", Operation.FLUSH)

    async def exit(self) -> None:
        self._order("exit", Operation.SWAP_IN)

    async def start_page_fault_logging(self) -> None:
        self._order("log start", Operation.NONE)

    async def stop_page_fault_logging(self) -> None:
        self._order("log stop", Operation.NONE)


class Ctl:
    """One run of vmmswapctl."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, bus: PrivateBus, *args: str, **kwargs) -> "Ctl":
        pipe = asyncio.subprocess.PIPE
        options = {"stdout": pipe, "stderr": pipe, "env": bus.environment, **kwargs}
        command = [sys.executable, "-m", "vmmswap.ctl.main", *args]
        return cls(await asyncio.create_subprocess_exec(*command, **options))

    async def end(self) -> tuple[int, str, str]:
        async with asyncio.timeout(DEADLINE_S):
            out, err = await self.process.communicate()
        err = err or b""  # stdout and stderr are None where the test gave a terminal
        assert b"Traceback" not in err
        return self.process.returncode, (out or b"").decode(), err.decode()


async def ctl(bus: PrivateBus, *args: str, **kwargs) -> tuple[int, str, str]:
    return await (await Ctl.start(bus, *args, **kwargs)).end()


@pytest.fixture
async def publish_vm(private_bus: PrivateBus) -> AsyncIterator[Callable]:  # noqa: F811  the fixture
    connections: list[Connection] = []

    async def put(name: str) -> tuple[ScriptedVm, Connection]:
        vm = ScriptedVm(name)
        connection = await publish(vm, private_bus.address)
        connections.append(connection)
        return vm, connection

    yield put
    for connection in connections:
        await connection.close()


@pytest.fixture
def bus(private_bus: PrivateBus) -> PrivateBus:  # noqa: F811  the fixture
    return private_bus


async def ordered(vm: ScriptedVm) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await vm.ordered.wait()


async def test_list_asks_the_bus(bus, publish_vm):
    assert await ctl(bus, "list") == (
        0,
        "no VMs; `vmmswapctl prepare NAME` makes a socket on which a VMM hands its memory over\n",
        "",
    )
    assert await ctl(bus, "list", "--json") == (0, "", "")
    await publish_vm("web")
    other, _ = await publish_vm("0.odd-name")
    other.become(state=State.FAILED, error="no\nspace")
    code, out, err = await ctl(bus, "list")
    lines = [re.split("  +", line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    titles = "NAME STATE OPERATION PID OWNER SIZE RESIDENT SWAPPED STORED FAULTS ERROR"
    assert lines[0] == titles.split()
    owner = pwd.getpwuid(os.geteuid()).pw_name
    figures = ["-", "4242", owner, "4.0 MiB", "4.0 MiB", "0.0 MiB", "0.0 MiB", "0"]
    assert lines[1] == ["0.odd-name", "Failed", *figures, "no space"]
    assert lines[2] == ["web", "Ready", *figures, "-"]
    assert out.splitlines()[-1] == (
        "2 VMs: 8.0 MiB of guest memory, 8.0 MiB resident, 0.0 MiB swapped out, 0.0 MiB stored"
    )
    code, out, _ = await ctl(bus, "list", "--json")
    assert [json.loads(line)["Name"] for line in out.splitlines()] == ["0.odd-name", "web"]


async def test_list_in_the_columns_and_the_order_that_are_wanted(bus, publish_vm):
    for name, resident in (("a", 256), ("b", 1024), ("c", 512)):
        vm, _ = await publish_vm(name)
        vm.become(resident_pages=resident)
    code, out, err = await ctl(
        bus, "list", "--no-legend", "--columns", "name,resident", "--sort", "resident", "--reverse"
    )
    assert (code, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()] == [["b", "4.0"], ["c", "2.0"], ["a", "1.0"]]
    code, out, err = await ctl(bus, "list", "--columns", "name,nonsense")
    assert (code, out) == (2, "")
    assert "no column 'nonsense'" in err


async def test_a_monitor_without_a_vmm_is_shown_as_such(bus, publish_vm):
    vm, _ = await publish_vm("web")
    vm.become(pid=0, total_pages=0, resident_pages=0)
    _, out, _ = await ctl(bus, "list", "--no-legend", "--columns", "name,state,pid")
    assert re.split("  +", out.strip()) == ["web", "no VMM yet", "-"]


async def test_status_of_several_vms_and_of_all(bus, publish_vm):
    for name in ("b", "a"):
        await publish_vm(name)
    for args, names in ((("b", "a"), ["b", "a"]), ((), ["a", "b"]), (("--all",), ["a", "b"])):
        code, out, err = await ctl(bus, "status", "--json", *args)
        assert (code, err) == (0, "")
        assert [json.loads(line)["Name"] for line in out.splitlines()] == names
    code, out, err = await ctl(bus, "status")
    assert (code, err) == (0, "")
    assert [line.split()[1] for line in out.splitlines() if line.startswith("VM ")] == ["a", "b"]
    assert (await ctl(bus, "status", "a", "--all"))[0] == 2
    assert (await ctl(bus, "status", "a", "nobody"))[0] == 3


async def test_wait_for_a_state(bus, publish_vm):
    run = await Ctl.start(bus, "wait", "web", "Active", "--json")  # before the VM is there
    vm, _ = await publish_vm("web")
    vm.become(state=State.IN_PROGRESS, operation=Operation.SWAP_OUT)
    vm.become(state=State.ACTIVE, operation=Operation.NONE)
    code, out, err = await run.end()
    assert (code, err) == (0, "")
    assert json.loads(out)["State"] == "Active"


async def test_a_wait_that_cannot_come_true_ends(bus, publish_vm):
    vm, _ = await publish_vm("web")
    code, out, err = await ctl(bus, "wait", "web", "Active", "--timeout", "0.2")
    assert (code, out) == (1, "")
    assert err == "vmmswapctl: web was not Active within 0.2 s: `vmmswapctl status web`\n"
    vm.become(state=State.FAILED, error="no space")
    code, _, err = await ctl(bus, "wait", "web", "Active")
    assert code == 1
    assert "no space" in err


async def test_status(bus, publish_vm):
    vm, _ = await publish_vm("web")
    vm.become(state=State.IN_PROGRESS, operation=Operation.SWAP_OUT, progress_pages=256, swap_pages=256)
    code, out, err = await ctl(bus, "status", "web", "--json")
    assert (code, err) == (0, "")
    status = json.loads(out)
    assert list(status) == [row.key for row in KEYS]
    assert status["ProgressPages"] == 256
    code, out, _ = await ctl(bus, "status", "web")
    assert code == 0
    rows = [re.split("  +", line) for line in out.splitlines()]
    assert rows[0] == ["VM", "web"]
    assert ["Operation", "swap-out 25 %"] in rows
    assert ["Progress", "256 of 1024 pages"] in rows
    assert ["Resident", "4.0 MiB (1024 pages)"] in rows
    assert "\x1b" not in out


async def test_bus_option_wins_over_the_environment(bus, publish_vm):
    await publish_vm("web")
    env = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"}
    for args in (("--bus", bus.address, "status", "web"), ("status", "--bus", bus.address, "web")):
        code, out, _ = await ctl(bus, *args, env=env)
        assert code == 0
        assert "web" in out


@pytest.mark.parametrize(
    ("verb", "operation", "final"),
    [
        ("enable", Operation.SWAP_OUT, State.ACTIVE),
        ("disable", Operation.SWAP_IN, State.READY),
        ("trim", Operation.TRIM, State.ACTIVE),
        ("flush", Operation.FLUSH, State.ACTIVE),
    ],
)
async def test_operations_wait_until_done(bus, publish_vm, verb, operation, final):
    vm, _ = await publish_vm("web")
    run = await Ctl.start(bus, verb, "web", "--json")
    await ordered(vm)
    assert vm.orders == [verb]
    assert vm.status().operation == operation
    assert run.process.returncode is None
    vm.become(state=final, operation=Operation.NONE)
    code, out, err = await run.end()
    assert (code, err) == (0, "")
    assert json.loads(out)["State"] == final


async def test_a_flush_that_a_limit_stops_has_failed(bus, publish_vm):
    vm, _ = await publish_vm("web")
    run = await Ctl.start(bus, "flush", "web")
    await ordered(vm)
    vm.become(
        state=State.ACTIVE, operation=Operation.NONE, stored_ram_bytes=3 << 20, limited_by="write-budget"
    )
    code, out, err = await run.end()
    assert (code, out) == (1, "")
    assert err.startswith("vmmswapctl: 3.0 MiB of web stay on RAM: limited by write-budget")


async def test_a_turn_round_is_waited_for_and_told(bus, publish_vm):
    vm, _ = await publish_vm("web")
    run = await Ctl.start(bus, "enable", "web")
    await ordered(vm)
    vm.become(operation=Operation.SWAP_IN)
    vm.become(state=State.READY, operation=Operation.NONE)
    code, out, err = await run.end()
    assert (code, out) == (1, "")
    assert err.startswith("vmmswapctl: web is Ready, not Active: somebody else gave another order")


async def test_no_wait(bus, publish_vm):
    vm, _ = await publish_vm("web")
    assert await ctl(bus, "enable", "web", "--no-wait") == (0, "", "")
    assert vm.orders == ["enable"]
    code, out, _ = await ctl(bus, "disable", "web", "--no-wait", "--json")
    assert code == 0
    assert json.loads(out)["Operation"] == "swap-in"


async def test_failure_while_waiting(bus, publish_vm):
    vm, _ = await publish_vm("web")
    run = await Ctl.start(bus, "enable", "web")
    await ordered(vm)
    vm.become(state=State.FAILED, operation=Operation.NONE, error="no space in /var/lib/vmmswap/web")
    assert await run.end() == (
        1,
        "",
        "vmmswapctl: web: no space in /var/lib/vmmswap/web; `vmmswapctl status web` shows what is where\n",
    )


async def test_a_vm_that_goes_while_waiting(bus, publish_vm):
    vm, connection = await publish_vm("web")
    run = await Ctl.start(bus, "enable", "web")
    await ordered(vm)
    await connection.close()
    code, _, err = await run.end()
    assert code == 3
    assert err.startswith("vmmswapctl: web went away: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("verb", ["exit", "detach"])
async def test_exit_waits_until_the_monitor_is_gone(bus, publish_vm, verb):
    vm, connection = await publish_vm("web")
    run = await Ctl.start(bus, verb, "web")
    await ordered(vm)
    vm.become(state=State.READY, operation=Operation.NONE)
    await connection.close()
    assert await run.end() == (0, "", "")
    assert vm.orders == ["exit"]


async def test_exit_that_fails(bus, publish_vm):
    vm, _ = await publish_vm("web")
    run = await Ctl.start(bus, "exit", "web")
    await ordered(vm)
    vm.become(state=State.FAILED, operation=Operation.NONE, error="2 poisoned pages")
    code, _, err = await run.end()
    assert code == 1
    assert "2 poisoned pages" in err


async def test_the_bus_goes_while_waiting(bus, publish_vm):
    vm, _ = await publish_vm("web")
    run = await Ctl.start(bus, "enable", "web")
    await ordered(vm)
    bus.stop()
    code, _, err = await run.end()
    assert code == 5
    assert "bus" in err
    assert err.count("\n") == 1


async def test_interrupt_says_that_the_operation_goes_on(bus, publish_vm):
    vm, _ = await publish_vm("web")
    run = await Ctl.start(bus, "enable", "web")
    await ordered(vm)
    run.process.send_signal(signal.SIGINT)
    code, _, err = await run.end()
    assert code == 130
    assert "a swap-out of web that has begun continues: see `vmmswapctl status web`" in err
    assert vm.status().operation == Operation.SWAP_OUT


async def test_progress_bar_on_a_terminal_only(bus, publish_vm):
    vm, _ = await publish_vm("web")
    terminal, replica = pty.openpty()
    try:
        env = {**bus.environment, "TERM": "xterm", "COLUMNS": "100"}
        run = await Ctl.start(bus, "enable", "web", stderr=replica, env=env)
        os.close(replica)
        await ordered(vm)
        vm.become(progress_pages=512)
        seen = b""
        async with asyncio.timeout(DEADLINE_S):
            while b"50%" not in seen:
                seen += await asyncio.to_thread(os.read, terminal, 4096)
        assert b"web swap-out" in seen
        vm.become(state=State.ACTIVE, operation=Operation.NONE, swap_pages=1024)
        reading = asyncio.create_task(asyncio.to_thread(drain, terminal))
        code, out, _ = await run.end()
        await reading
        assert code == 0
        assert out == "web Active -, resident 4.0 MiB (1024 pages), swapped 4.0 MiB (1024 pages)\n"
    finally:
        os.close(terminal)


def drain(terminal: int) -> None:
    with contextlib.suppress(OSError):  # EIO: nobody has the other end open any more
        while os.read(terminal, 4096):
            pass


async def test_table_on_a_terminal_has_colours_and_survives_markup(bus, publish_vm):
    vm, _ = await publish_vm("web")
    vm.become(state=State.FAILED, error="[bold]x[/nonsense]\x1b[2J")
    terminal, replica = pty.openpty()
    try:
        env = {**bus.environment, "TERM": "xterm", "COLUMNS": "200"}
        run = await Ctl.start(bus, "list", stdout=replica, env=env)
        os.close(replica)
        reading = asyncio.create_task(asyncio.to_thread(collect, terminal))
        code, _, err = await run.end()
        seen = await reading
    finally:
        os.close(terminal)
    assert (code, err) == (0, "")
    assert b"\x1b[1" in seen
    assert b"[bold]x[/nonsense]" in seen
    assert b"\x1b[2J" not in seen


def collect(terminal: int) -> bytes:
    seen = b""
    with contextlib.suppress(OSError):
        while piece := os.read(terminal, 4096):
            seen += piece
    return seen


async def test_log(bus, publish_vm):
    vm, _ = await publish_vm("web")
    assert await ctl(bus, "log", "start", "web") == (0, "", "")
    assert await ctl(bus, "log", "stop", "web") == (0, "", "")
    assert vm.orders == ["log start", "log stop"]


@pytest.mark.parametrize(
    "args",
    [
        ("status",),
        ("enable",),
        ("disable",),
        ("trim",),
        ("flush",),
        ("exit",),
        ("detach",),
        ("log", "start"),
        ("monitor",),
    ],
)
async def test_no_such_vm(bus, args):
    code, out, err = await ctl(bus, *args, "nobody")
    assert (code, out) == (3, "")
    assert err == "vmmswapctl: no VM named nobody; `vmmswapctl list` shows all there are\n"


async def test_refusals(bus, publish_vm):
    vm, _ = await publish_vm("web")
    vm.refusal = AccessDeniedError("uid 1000 may not; ask root")
    assert await ctl(bus, "enable", "web") == (4, "", "vmmswapctl: uid 1000 may not; ask root\n")
    vm.refusal = BusyError("being attached; try again")
    assert await ctl(bus, "enable", "web") == (1, "", "vmmswapctl: being attached; try again\n")


async def test_a_monitor_with_a_bug_gives_one_line(bus, publish_vm):
    vm, _ = await publish_vm("web")
    vm.refusal = RuntimeError("bug")
    code, out, err = await ctl(bus, "enable", "web")
    assert (code, out, err.count("\n")) == (1, "", 1)


async def test_an_unprivileged_caller_is_refused(bus, publish_vm):
    vm, _ = await publish_vm("web")
    vm.owner_uid = 0
    code, out, err = await ctl(bus, "enable", "web", user=65534, group=65534, extra_groups=[])
    assert (code, out) == (4, "")
    assert err.count("\n") == 1
    assert vm.orders == []
    code, out, _ = await ctl(bus, "status", "web", user=65534, group=65534, extra_groups=[])
    assert code == 0


@pytest.mark.parametrize("args", [("prepare", "web"), ("attach", "web", "1")])
async def test_no_vmmswapd(bus, args):
    code, out, err = await ctl(bus, *args)
    assert (code, out) == (5, "")
    assert err == "vmmswapctl: vmmswapd is not on the bus: `systemctl start vmmswapd`, or see its journal\n"


@pytest.mark.parametrize("args", [("list",), ("status", "web"), ("monitor",), ("prepare", "web")])
async def test_no_bus(bus, args):
    bus.stop()
    code, out, err = await ctl(bus, *args)
    assert (code, out) == (5, "")
    assert err.count("\n") == 1
    assert bus.address in err


class RecordingHost:
    """org.vmmswap.Host as vmmswapd exports it; it notes what it is asked."""

    path = HOST_PATH
    interfaces = (HOST,)

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    async def call(self, _interface: Interface, call: Call) -> list:
        self.calls.append((call.method.name, *plain(call.args)))
        return [object_path_of(call.args[0])]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("Attach", "web", 42)),
        (["--force"], ("AttachWithOptions", "web", 42, {"force": True})),
        (["--qmp", "/run/q.sock"], ("AttachWithOptions", "web", 42, {"qmp": "/run/q.sock"})),
        (
            ["--region", "7f0000000000-7f0000400000", "--region=0x1000-2000", "--force"],
            (
                *("AttachWithOptions", "web", 42),
                {"regions": ["7f0000000000-7f0000400000", "0x1000-2000"], "force": True},
            ),
        ),
    ],
)
async def test_attach_and_its_options(bus, words, expected):
    host = RecordingHost()
    connection = Connection(bus.address)
    connection.export(host)
    await connection.start()
    try:
        await connection.own_name(BUS_NAME)
        code, out, err = await ctl(bus, "attach", "web", "42", *words)
        assert (code, err) == (0, "")
        assert out.startswith("attached: `journalctl VMMSWAP_VM=web` says what was found, `vmmswapctl enable")
    finally:
        await connection.close()
    assert host.calls == [expected]
    options = host.calls[0][3] if words else {}
    parsed = parse(attach_message(options).rstrip(), fd_count=1)  # as vmmswapd hands them on
    assert parsed == Attach(
        force="--force" in words, regions=tuple(options.get("regions", ())), qmp=options.get("qmp")
    )


async def test_monitor_follows(bus, publish_vm):
    await publish_vm("first")
    run = await Ctl.start(bus, "monitor", "--json")

    async def event() -> dict:
        async with asyncio.timeout(DEADLINE_S):
            return json.loads(await run.process.stdout.readline())

    seen = await event()
    assert (seen["Event"], seen["Name"], seen["Status"]["State"]) == ("present", "first", "Ready")
    vm, connection = await publish_vm("web")
    seen = await event()
    assert (seen["Event"], seen["Name"], seen["Status"]["State"]) == ("appeared", "web", "Ready")
    await vm.enable()
    seen = await event()
    assert (seen["Event"], seen["Name"], seen["Status"]["Operation"]) == ("changed", "web", "swap-out")
    await connection.close()
    seen = await event()
    assert (seen["Event"], seen["Name"], seen["Status"]) == ("gone", "web", None)
    run.process.send_signal(signal.SIGINT)
    assert await run.end() == (130, "", "")


async def test_monitor_of_one_vm_ends_with_it(bus, publish_vm):
    await publish_vm("other")
    vm, connection = await publish_vm("web")
    run = await Ctl.start(bus, "monitor", "web")
    async with asyncio.timeout(DEADLINE_S):
        first = await run.process.stdout.readline()
    assert first.split()[1:4] == [b"present", b"web", b"Ready"]
    vm.become(state=State.FAILED, error="broken")
    await connection.close()
    code, out, err = await run.end()
    assert (code, err) == (0, "")
    assert [line.split()[1] for line in out.splitlines()] == ["changed", "gone"]
    assert "error: broken" in out


async def test_monitor_believes_a_vms_owner_only(bus, publish_vm):
    _, connection = await publish_vm("web")
    _, stranger = await publish_vm("stranger")
    run = await Ctl.start(bus, "monitor", "web", "--json")
    async with asyncio.timeout(DEADLINE_S):
        assert json.loads(await run.process.stdout.readline())["Event"] == "present"
    stranger.emit("/org/vmmswap/vm/web", "org.vmmswap.Manager", "StatusChanged", "a{sv}", [{}])
    assert await stranger.owner_of("org.vmmswap.vm.web")  # the signal has been through the bus
    await connection.close()
    code, out, _ = await run.end()
    assert code == 0
    assert [json.loads(line)["Event"] for line in out.splitlines()] == ["gone"]


async def test_a_reader_that_leaves(bus, publish_vm):
    vm, _ = await publish_vm("web")
    run = await Ctl.start(bus, "monitor")
    async with asyncio.timeout(DEADLINE_S):
        await run.process.stdout.readline()
        run.process._transport.get_pipe_transport(1).close()
        while run.process.returncode is None:
            vm.become(fault_count=vm.status().fault_count + 1)
            await asyncio.sleep(0)
        err = await run.process.stderr.read()
    assert (run.process.returncode, err) == (141, b"")


async def test_host_goes_through_ssh(bus, publish_vm, tmp_path):
    vm, _ = await publish_vm("web")
    ssh = tmp_path / "ssh"
    # What sshd's side would do: run the command, with this host's bus as its system bus.
    ssh.write_text(
        '#!/bin/sh\n[ "$*" = "-xT -- root@far systemd-stdio-bridge" ] || { echo "bad: $*" >&2; exit 255; }\n'
        f'exec systemd-stdio-bridge --bus-path="{bus.address}"\n'
    )
    ssh.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/none",
    }
    run = await Ctl.start(bus, "--host", "root@far", "enable", "web", env=env)
    await ordered(vm)
    vm.become(state=State.ACTIVE, operation=Operation.NONE)
    code, out, err = await run.end()
    assert (code, err) == (0, "")
    assert out.startswith("web Active")
    code, out, err = await ctl(bus, "list", "-H", "root@near", env=env)
    assert (code, out) == (5, "")
    assert err == (
        "vmmswapctl: no bus of root@near through ssh: bad: -xT -- root@near systemd-stdio-bridge; "
        "does `ssh root@near systemd-stdio-bridge` work?\n"
    )


async def test_with_vmmswapd(bus, publish_vm):
    vm, connection = await publish_vm("web")
    vm.become(state=State.ACTIVE, swap_pages=1024)
    up = asyncio.Event()
    names = Match("org.freedesktop.DBus", "NameOwnerChanged", arg0namespace="org.vmmswap")
    await connection.subscribe(names, lambda signal: up.set() if signal.body[0] == "org.vmmswap" else None)
    daemon = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vmmswap.host.main", "--bus", bus.address),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            await up.wait()
        code, out, err = await ctl(bus, "list", "--json")
        found = [json.loads(line) for line in out.splitlines()]
        assert (code, err) == (0, "")
        assert [(item["Name"], item["SwapPages"]) for item in found] == [("web", 1024)]
        # vmmswapd's own refusal comes through: it has no systemd to ask on this bus.
        code, out, err = await ctl(bus, "prepare", "other")
        assert (code, out, err.count("\n")) == (1, "", 1)
    finally:
        daemon.terminate()
        await daemon.wait()
