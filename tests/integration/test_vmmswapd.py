# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswapd on a real bus, with VMs in processes of their own."""

import asyncio
import os
import pwd
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.support.bus import REPOSITORY, Client, PrivateBus, Signals, private_bus, start, until
from tests.support.introspection import describe
from vmmswap.names import BUS_NAME, HOST_INTERFACE, HOST_PATH, MANAGER_INTERFACE, bus_name_of, object_path_of

__all__ = ["private_bus"]

OWNER, STRANGER = (pwd.getpwnam(name).pw_uid for name in ("nobody", "daemon"))
H, M = HOST_INTERFACE, MANAGER_INTERFACE
DBUS = REPOSITORY / "dbus"
OBJECT_MANAGER = "type='signal',path='/org/vmmswap',interface='org.freedesktop.DBus.ObjectManager'"


def program(bus: PrivateBus, *arguments: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """A Python program of ours on this bus."""
    return start(bus, sys.executable, "-m", *arguments)


@asynccontextmanager
async def virtual_machine(
    bus: PrivateBus, name: str, uid: int = 0
) -> AsyncIterator[asyncio.subprocess.Process]:
    async with program(bus, "tests.support.recording_vm", name, bus.address, str(uid)) as process:
        assert process.stdout
        assert await process.stdout.readline() == b"ready\n"
        yield process


@asynccontextmanager
async def vmmswapd(bus: PrivateBus, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    async with program(bus, "vmmswap.host.main", *arguments) as process:
        await until(lambda: bus.has_owner(BUS_NAME))
        yield process


@pytest.fixture
def host(private_bus: PrivateBus) -> Client:
    return Client(private_bus, BUS_NAME, HOST_PATH)


@pytest.fixture
async def two_vms(private_bus: PrivateBus) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    async with AsyncExitStack() as stack:
        machines = [("web", OWNER), ("busy.2", 0)]
        processes = [await stack.enter_async_context(virtual_machine(private_bus, *one)) for one in machines]
        await stack.enter_async_context(vmmswapd(private_bus))
        yield processes


async def listed(host: Client) -> list[list[str]]:
    [rows] = await host.json(H, "ListVMs")
    return list(rows)


@pytest.mark.usefixtures("two_vms")
async def test_list_and_get_are_for_everyone(host: Client) -> None:
    rows = [["busy.2", object_path_of("busy.2"), "Ready"], ["web", object_path_of("web"), "Ready"]]
    assert await listed(host) == rows
    assert await host.call(H, "GetVM", "s", "web", uid=STRANGER) == 'o "/org/vmmswap/vm/web"'
    name, text = await host.error(f"{H}.GetVM", "string:none")
    assert name == "org.vmmswap.Error.NoSuchVM"
    assert "'none'" in text
    for wrong in ("", "-x", "a/b", "x" * 65):
        assert (await host.error(f"{H}.GetVM", f"string:{wrong}"))[0] == "org.vmmswap.Error.InvalidName"


@pytest.mark.usefixtures("two_vms")
async def test_both_ways_to_a_vm_answer_the_same(private_bus: PrivateBus, host: Client) -> None:
    path = object_path_of("web")
    forwarded, direct = host.at(path), Client(private_bus, bus_name_of("web"), path)
    await forwarded.call(M, "Enable")
    for client in (forwarded, direct):
        assert await client.get(M, "State", "Operation", "SwapPages", "OwnerUid") == [
            's "Active"', 's ""', "t 3", f"u {OWNER}",
        ]  # fmt: skip
    assert await forwarded.call(M, "Status") == await direct.call(M, "Status")
    xml = [(await client.busctl("introspect", "--xml-interface")).ok.output for client in (forwarded, direct)]
    assert describe(xml[0]) == describe(xml[1])
    await direct.call(M, "Disable")
    assert await forwarded.get(M, "State") == ['s "Ready"']


@pytest.mark.usefixtures("two_vms")
async def test_errors_come_through_unchanged(private_bus: PrivateBus, host: Client) -> None:
    for name in ("web", "busy.2"):
        path = object_path_of(name)
        for member in ("Enable", "Disable", "Trim") if name == "busy.2" else ("Trim",):
            direct = await Client(private_bus, bus_name_of(name), path).error(f"{M}.{member}")
            assert await host.at(path).error(f"{M}.{member}") == direct
    path = object_path_of("web")
    assert await host.at(path).error(f"{M}.Enable", "string:x") == await Client(
        private_bus, bus_name_of("web"), path
    ).error(f"{M}.Enable", "string:x")


@pytest.mark.usefixtures("two_vms")
async def test_who_may_change_is_decided_for_the_real_caller(host: Client) -> None:
    web, busy = host.at(object_path_of("web")), host.at(object_path_of("busy.2"))
    for member in ("Enable", "Disable", "Trim", "Exit", "StartPageFaultLogging"):
        name, text = await web.error(f"{M}.{member}", uid=STRANGER)
        assert (name, f"uid {STRANGER}" in text) == ("org.vmmswap.Error.AccessDenied", True)
    assert (await busy.error(f"{M}.Enable", uid=OWNER))[0] == "org.vmmswap.Error.AccessDenied"
    await web.call(M, "Enable", uid=OWNER)
    assert await web.get(M, "State", uid=STRANGER) == ['s "Active"']
    assert (await host.error(f"{H}.Prepare", "string:new", uid=STRANGER))[
        0
    ] == "org.vmmswap.Error.AccessDenied"


@pytest.mark.usefixtures("two_vms")
async def test_signals_come_through_unchanged(private_bus: PrivateBus, host: Client) -> None:
    path = object_path_of("web")
    sides = [f"type='signal',path='{path}',sender='{name}'" for name in (bus_name_of("web"), BUS_NAME)]
    async with Signals(private_bus, sides[0]) as direct, Signals(private_bus, sides[1]) as forwarded:
        await host.at(path).call(M, "Enable")
        for _ in range(4):
            members = ("StatusChanged", "PropertiesChanged")
            one, other = await direct.next(*members), await forwarded.next(*members)
            assert one["sender"] != other["sender"]
            for key in ("path", "interface", "member", "payload"):
                assert one[key] == other[key]


async def test_vms_that_come_and_go_are_told_of(private_bus: PrivateBus, host: Client) -> None:
    async with vmmswapd(private_bus), Signals(private_bus, OBJECT_MANAGER) as signals:
        assert await listed(host) == []
        async with virtual_machine(private_bus, "9lives") as process:
            added = await signals.next("InterfacesAdded", "InterfacesRemoved")
            path, interfaces = added["payload"]["data"]
            assert (added["member"], path) == ("InterfacesAdded", object_path_of("9lives"))
            assert interfaces[M]["State"] == {"type": "s", "data": "Ready"}
            assert interfaces[M]["Name"] == {"type": "s", "data": "9lives"}
            [objects] = await host.json("org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
            assert objects == {path: interfaces}
            process.kill()
            removed = await signals.next("InterfacesAdded", "InterfacesRemoved")
            assert (removed["member"], removed["payload"]["data"]) == ("InterfacesRemoved", [path, [M]])
        assert (await host.at(path).error(f"{M}.Status"))[0] == "org.vmmswap.Error.NoSuchVM"
        assert await listed(host) == []


async def test_a_vm_that_nobody_knows_is_no_such_vm(private_bus: PrivateBus, host: Client) -> None:
    async with vmmswapd(private_bus):
        for member in (f"{M}.Enable", "org.freedesktop.DBus.Properties.GetAll"):
            name, text = await host.at("/org/vmmswap/vm/none").error(member, f"string:{M}")
            assert name == "org.vmmswap.Error.NoSuchVM"
            assert "/org/vmmswap/vm/none" in text


async def test_a_monitor_that_dies_during_a_call_is_no_such_vm(
    two_vms: list[asyncio.subprocess.Process], host: Client
) -> None:
    web = two_vms[0]
    web.send_signal(signal.SIGSTOP)
    call = asyncio.create_task(host.at(object_path_of("web")).error(f"{M}.Enable"))
    rows = await listed(host)  # answers although web does not
    assert ["web", object_path_of("web"), ""] in rows
    web.kill()
    assert (await call)[0] == "org.vmmswap.Error.NoSuchVM"


@pytest.mark.usefixtures("two_vms")
async def test_kill_9_and_the_next_one_finds_all(private_bus: PrivateBus) -> None:
    host = Client(private_bus, BUS_NAME, HOST_PATH)
    async with virtual_machine(private_bus, "late"):
        await host.at(object_path_of("late")).call(M, "Enable")
        owner = await Client(private_bus, "org.freedesktop.DBus", "/org/freedesktop/DBus").call(
            "org.freedesktop.DBus", "GetConnectionUnixProcessID", "s", BUS_NAME
        )
        os.kill(int(owner.split()[1]), signal.SIGKILL)
        await until(lambda: is_gone(private_bus, BUS_NAME))
        direct = Client(private_bus, bus_name_of("late"), object_path_of("late"))
        assert await direct.get(M, "State") == ['s "Active"']
        async with vmmswapd(private_bus):
            assert [row[0] for row in await listed(host)] == ["busy.2", "late", "web"]
            assert await host.at(object_path_of("late")).get(M, "State") == ['s "Active"']
            await host.at(object_path_of("late")).call(M, "Disable")


async def is_gone(bus: PrivateBus, name: str) -> bool:
    return not await bus.has_owner(name)


@pytest.mark.usefixtures("two_vms")
async def test_the_bus_restarts_and_all_vms_are_found_again(private_bus: PrivateBus, host: Client) -> None:
    private_bus.stop()
    private_bus.start()

    async def all_back() -> bool:
        answer = await host.busctl("call", H, "ListVMs")
        return answer.output.startswith("a(sos) 2 ")

    await until(all_back)
    await host.at(object_path_of("web")).call(M, "Enable")


async def test_idle_it_exits_and_with_a_vm_it_stays(private_bus: PrivateBus) -> None:
    async with (
        virtual_machine(private_bus, "web") as machine,
        vmmswapd(private_bus, "--idle-exit=0.2") as daemon,
    ):
        await asyncio.sleep(0.6)  # three periods, of which each would be enough to end it
        assert daemon.returncode is None
        machine.terminate()
        _output, error = await daemon.communicate()
        assert daemon.returncode == 0
        assert b"nothing to do for 0.2 s" in error


async def test_sigterm_ends_it_cleanly(private_bus: PrivateBus) -> None:
    async with vmmswapd(private_bus) as daemon:
        daemon.terminate()
        _output, error = await daemon.communicate()
        assert (daemon.returncode, error) == (0, b"")


async def test_a_second_vmmswapd_says_why_it_cannot_start(private_bus: PrivateBus) -> None:
    async with vmmswapd(private_bus), program(private_bus, "vmmswap.host.main") as second:
        _output, error = await second.communicate()
        assert second.returncode == 69
        assert error.decode().startswith("vmmswapd: the bus name org.vmmswap is already owned, by :1.")
        assert error.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["--bus=unix:path=/nonexistent/bus"],
            1,
            "cannot reach the message bus at unix:path=/nonexistent/bus",
        ),
        (["--idle-exit=never"], 2, "invalid"),
        (["--idle-exit=-1"], 2, "is not a number of seconds"),
        (["--nonsense"], 2, "unrecognized arguments: --nonsense"),
    ],
)
async def test_bad_usage(private_bus: PrivateBus, arguments: list[str], status: int, message: str) -> None:
    async with program(private_bus, "vmmswap.host.main", *arguments) as process:
        _output, error = await process.communicate()
        assert process.returncode == status
        assert message in error.decode()
        assert "Traceback" not in error.decode()


async def test_the_shipped_interfaces_are_what_it_answers(private_bus: PrivateBus, host: Client) -> None:
    async with vmmswapd(private_bus):
        live = describe((await host.busctl("introspect", "--xml-interface")).ok.output)
    assert live[H] == describe((DBUS / "org.vmmswap.Host.xml").read_text())[H]
    assert "org.freedesktop.DBus.ObjectManager" in live


async def test_prepare_without_systemd_says_so(private_bus: PrivateBus, host: Client) -> None:
    async with vmmswapd(private_bus):
        name, text = await host.error(f"{H}.Prepare", "string:new")
        assert name == "org.vmmswap.Error.NotSupported"
        assert "systemd is not on this bus" in text
        assert (await host.error(f"{H}.Prepare", "string:a/b"))[0] == "org.vmmswap.Error.InvalidName"


async def test_attach_looks_at_the_target_first(private_bus: PrivateBus, host: Client) -> None:
    async with vmmswapd(private_bus):
        own = str(os.getpid())
        denied = await host.error(f"{H}.Attach", "string:new", f"uint32:{own}", uid=STRANGER)
        assert denied[0] == "org.vmmswap.Error.AccessDenied"
        assert own in denied[1]
        for pid in ("0", str(2**32 - 1), str(largest_pid())):
            name, text = await host.error(f"{H}.Attach", "string:new", f"uint32:{pid}")
            assert (name, f"pid {pid}" in text) == ("org.vmmswap.Error.NotSupported", True)


def largest_pid() -> int:
    """A pid that no process can have."""
    return int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
