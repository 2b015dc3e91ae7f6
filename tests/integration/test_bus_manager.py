# SPDX-License-Identifier: GPL-2.0-or-later
"""org.vmmswap.Manager on a real bus, driven by busctl and dbus-send."""

import asyncio
import logging
import pwd
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from dbus_next import Message as LibraryMessage
from dbus_next.aio import MessageBus

from tests.support.bus import Client, PrivateBus, Signals, private_bus, run, until
from tests.support.introspection import describe
from tests.support.recording_vm import RecordingVm
from vmmswap.bus.authority import Authority
from vmmswap.bus.connection import Connection, NameUnavailableError
from vmmswap.bus.dbus import Kind, Message, encode
from vmmswap.bus.dispatch import Caller
from vmmswap.bus.manager import publish
from vmmswap.bus.transport import BusUnreachableError
from vmmswap.errors import ALL, AccessDeniedError, BusyError, NoSpaceError, VmmswapError
from vmmswap.names import MANAGER_INTERFACE, bus_name_of, object_path_of
from vmmswap.status import KEYS, State

__all__ = ["private_bus"]

MANAGER_XML = Path(__file__).resolve().parents[2] / "dbus" / "org.vmmswap.Manager.xml"
# dbus-daemon lets in only uids that have a name
OWNER, STRANGER = (pwd.getpwnam(name).pw_uid for name in ("nobody", "daemon"))
M = MANAGER_INTERFACE


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
async def vm(private_bus: PrivateBus) -> AsyncIterator[RecordingVm]:
    recording = RecordingVm("web", owner_uid=OWNER)
    connection = await publish(recording, private_bus.address)
    yield recording
    await connection.close()


@pytest.fixture
def client(private_bus: PrivateBus, vm: RecordingVm) -> Client:
    return Client(private_bus, bus_name_of(vm.name), object_path_of(vm.name))


async def test_orders_arrive_and_return(client: Client, vm: RecordingVm) -> None:
    for member in ("Enable", "Disable", "StartPageFaultLogging", "StopPageFaultLogging", "Exit", "Detach"):
        assert await client.call(M, member) == ""
    assert vm.orders == ["enable", "disable", "log start", "log stop", "exit", "exit"]


async def test_status_has_every_key_with_its_type(client: Client) -> None:
    words = (await client.call(M, "Status")).split()
    assert words[:2] == ["a{sv}", str(len(KEYS))]
    for row in KEYS:
        assert words[words.index(f'"{row.key}"') + 1] == row.signature
    assert words[words.index('"TotalPages"') + 2] == str(1 << 40)


async def test_each_property_is_readable_by_everyone_with_its_type(client: Client) -> None:
    lines = await client.get(M, *(row.key for row in KEYS), uid=STRANGER)
    assert [line.split()[0] for line in lines] == [row.signature for row in KEYS]
    assert lines[[row.key for row in KEYS].index("OwnerUid")] == f"u {OWNER}"
    assert (await client.call(M, "Status", uid=STRANGER)).startswith("a{sv}")


async def test_introspection_is_the_shipped_xml(client: Client) -> None:
    answer = (await client.busctl("introspect", "--xml-interface")).ok
    live = describe(answer.output)
    assert live[M] == describe(MANAGER_XML.read_text())[M]
    assert set(live) == {M} | {
        f"org.freedesktop.DBus.{name}" for name in ("Peer", "Introspectable", "Properties")
    }


async def test_gdbus_understands_the_introspection(client: Client, private_bus: PrivateBus) -> None:
    if not shutil.which("gdbus"):
        pytest.skip("needs gdbus (Debian: libglib2.0-bin)")
    where = ["--address", private_bus.address, "--dest", client.destination, "--object-path", client.path]
    described = (await run("gdbus", "introspect", *where)).ok.output
    assert "EmitsChangedSignal" in described
    assert "readonly s State = 'Ready';" in described
    answer = await run("gdbus", "call", *where, "--method", f"{M}.Trim")
    assert "GDBus.Error:org.vmmswap.Error.NotSupported: trim: web is Ready" in answer.error


async def test_the_tree_of_paths_leads_to_the_object(client: Client) -> None:
    tree = (await run("busctl", f"--address={client._bus.address}", "tree", client.destination)).ok.output
    assert "/org/vmmswap/vm/web" in tree


async def test_every_error_arrives_by_its_name(client: Client, vm: RecordingVm) -> None:
    for cls in ALL:
        vm.fail_next = cls(f"told by {cls.__name__}")
        assert await client.error(f"{M}.Enable") == (cls.dbus_name, f"told by {cls.__name__}")


async def test_a_bug_becomes_internal_is_logged_once_and_shows_no_traceback(
    client: Client, vm: RecordingVm, caplog: pytest.LogCaptureFixture
) -> None:
    vm.fail_next = ZeroDivisionError("secret of the inside")
    name, text = await client.error(f"{M}.Enable")
    assert name == "org.vmmswap.Error.Internal"
    assert "Traceback" not in text
    assert "secret" not in text
    assert [record.message for record in caplog.records if record.exc_info] == [
        "bug in the handler of org.vmmswap.Manager.Enable at /org/vmmswap/vm/web"
    ]
    assert await client.call(M, "Disable") == ""


async def test_a_cancelled_handler_still_answers(client: Client, vm: RecordingVm) -> None:
    vm.fail_next = asyncio.CancelledError()
    name, _text = await client.error(f"{M}.Enable")
    assert name == "org.vmmswap.Error.Internal"


@pytest.mark.parametrize(
    ("member", "arguments", "error"),
    [
        (f"{M}.Nonsense", [], "UnknownMethod"),
        (f"{M}.Enable", ["string:x"], "InvalidArgs"),
        ("org.example.Other.Enable", [], "UnknownInterface"),
        ("org.freedesktop.DBus.Properties.Get", [f"string:{M}", "string:Nonsense"], "UnknownProperty"),
        ("org.freedesktop.DBus.Properties.Get", ["string:org.example.X", "string:State"], "UnknownInterface"),
        (
            "org.freedesktop.DBus.Properties.Set",
            [f"string:{M}", "string:State", "variant:string:Active"],
            "PropertyReadOnly",
        ),
    ],
)
async def test_misuse_is_answered_with_the_standard_errors(
    client: Client, vm: RecordingVm, member: str, arguments: list[str], error: str
) -> None:
    name, text = await client.error(member, *arguments)
    assert name == f"org.freedesktop.DBus.Error.{error}"
    assert text
    assert vm.orders == []


async def test_another_path_is_an_unknown_object(client: Client) -> None:
    name, _text = await client.at("/org/vmmswap/vm/other").error(f"{M}.Enable")
    assert name == "org.freedesktop.DBus.Error.UnknownObject"


async def test_without_polkit_only_root_and_the_owner_may_change(
    client: Client, vm: RecordingVm, caplog: pytest.LogCaptureFixture
) -> None:
    for member in (
        "Enable",
        "Disable",
        "Trim",
        "Flush",
        "StartPageFaultLogging",
        "StopPageFaultLogging",
        "Exit",
        "Detach",
    ):
        name, text = await client.error(f"{M}.{member}", uid=STRANGER)
        assert name == "org.vmmswap.Error.AccessDenied"
        assert f"uid {STRANGER}" in text
    assert vm.orders == []
    assert vm.status().state is State.READY
    denials = [record for record in caplog.records if f"denied uid {STRANGER}" in record.message]
    assert len(denials) == 8
    assert all(record.levelno == logging.WARNING for record in denials)
    assert await client.call(M, "Enable", uid=OWNER) == ""
    assert vm.orders == ["enable"]


async def test_a_flood_of_denials_does_not_fill_the_journal(
    private_bus: PrivateBus, vm: RecordingVm, caplog: pytest.LogCaptureFixture
) -> None:
    asking = Connection(private_bus.address)
    await asking.start()
    authority = Authority(asking)
    for uid in [STRANGER] * 300 + [OWNER]:
        with pytest.raises(AccessDeniedError):
            await authority.check(Caller(":1.1", uid, 1, interactive=False), "org.vmmswap.log", vm.name, None)
    messages = [record.message for record in caplog.records]
    assert sum(f"denied uid {STRANGER}" in message for message in messages) == 100
    assert f"denied uid {OWNER} (pid 1) org.vmmswap.log for the VM web" in messages[-1]
    await asking.close()


async def test_status_changed_and_properties_changed(private_bus: PrivateBus, client: Client) -> None:
    async with Signals(private_bus, "type='signal',path='/org/vmmswap/vm/web'") as signals:
        await client.call(M, "Enable")
        both = ("StatusChanged", "PropertiesChanged")
        received = [await signals.next(*both) for _ in range(4)]
    assert [message["member"] for message in received] == [*both, *both]
    assert all(message["path"] == "/org/vmmswap/vm/web" for message in received)
    [status] = received[0]["payload"]["data"]
    assert set(status) == {row.key for row in KEYS}
    assert status["State"] == {"type": "s", "data": "InProgress"}
    assert status["Operation"] == {"type": "s", "data": "swap-out"}
    interface, changed, invalidated = received[3]["payload"]["data"]
    assert (interface, invalidated) == (M, [])
    assert changed == {"State": {"type": "s", "data": "Active"}, "Operation": {"type": "s", "data": ""}}


async def test_counters_alone_raise_no_properties_changed(
    private_bus: PrivateBus, client: Client, vm: RecordingVm
) -> None:
    async with Signals(private_bus, "type='signal',path='/org/vmmswap/vm/web'") as signals:
        vm.change(copied_pages=7)
        await client.call(M, "Disable")  # changes no signalled key either
        vm.change(state=State.FAILED, error="no space")
        members = [(await signals.next("StatusChanged", "PropertiesChanged"))["member"] for _ in range(4)]
    assert members == ["StatusChanged", "StatusChanged", "StatusChanged", "PropertiesChanged"]


async def test_the_bus_restarts_and_the_name_is_owned_again(
    private_bus: PrivateBus, client: Client, vm: RecordingVm
) -> None:
    private_bus.stop()
    vm.change(state=State.IN_PROGRESS)  # a signal that nobody can hear disturbs nothing
    private_bus.start()

    async def is_back() -> bool:
        return (await client.busctl("call", M, "Enable")).status == 0

    await until(is_back)
    assert vm.orders == ["enable"]
    assert await client.get(M, "State") == ['s "Active"']


async def test_a_service_may_start_before_its_bus(private_bus: PrivateBus) -> None:
    private_bus.stop()
    recording = RecordingVm("early")
    with pytest.raises(BusUnreachableError, match="cannot reach the message bus at unix:path="):
        await publish(recording, private_bus.address)
    connection = await publish(recording, private_bus.address, required=False)
    private_bus.start()
    await connection.wait_connected()
    await Client(private_bus, bus_name_of("early"), object_path_of("early")).call(M, "Enable")
    assert recording.orders == ["enable"]
    await connection.close()


async def test_a_name_that_is_owned_is_refused_and_its_owner_undisturbed(
    private_bus: PrivateBus, client: Client, vm: RecordingVm
) -> None:
    with pytest.raises(NameUnavailableError, match=r"org\.vmmswap\.vm\.web is already owned, by :1\."):
        await publish(RecordingVm("web"), private_bus.address)
    await client.call(M, "Enable")
    assert vm.orders == ["enable"]


async def test_only_root_may_own_a_name(private_bus: PrivateBus) -> None:
    bus = Client(private_bus, "org.freedesktop.DBus", "/org/freedesktop/DBus")
    request = ["org.freedesktop.DBus", "RequestName", "su", "org.vmmswap.vm.fake", "4"]
    taken = await bus.busctl("call", *request, uid=STRANGER)
    assert taken.status != 0
    assert "Access denied" in taken.error


@pytest.mark.parametrize("name", ["1st", "a.b", "a-b", "_x", "x" * 64, "9" + "." * 63])
async def test_names_that_need_escaping(private_bus: PrivateBus, name: str) -> None:
    recording = RecordingVm(name)
    connection = await publish(recording, private_bus.address)
    await Client(private_bus, bus_name_of(name), object_path_of(name)).call(M, "Enable")
    assert recording.orders == ["enable"]
    await connection.close()


async def test_close_answers_what_is_being_handled(private_bus: PrivateBus) -> None:
    recording = RecordingVm("slow")
    recording.gate = asyncio.Event()
    connection = await publish(recording, private_bus.address)
    caller = Client(private_bus, bus_name_of("slow"), object_path_of("slow"))
    call = asyncio.create_task(caller.call(M, "Exit"))
    while not recording.orders:
        await asyncio.sleep(0.01)
    asyncio.get_running_loop().call_later(0.1, recording.gate.set)
    await connection.close()
    assert await call == ""


async def test_fds_that_nobody_asked_for_do_not_stay(
    private_bus: PrivateBus, client: Client, vm: RecordingVm
) -> None:
    library = await MessageBus(bus_address=private_bus.address, negotiate_unix_fd=True).connect()
    before = open_fds()
    for member in ["Enable", "Nonsense"] * 10:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            reply = await library.call(
                LibraryMessage(
                    destination=client.destination, path=client.path, interface=M, member=member,
                    signature="h", body=[0], unix_fds=[ours.fileno()],
                )
            )  # fmt: skip
            assert reply is not None
            assert reply.error_name
    assert vm.orders == []
    assert open_fds() == before
    library.disconnect()
    await library.wait_for_disconnect()
    library._stream.close()  # it leaves both open
    library._sock.close()


async def test_too_many_calls_of_one_caller_leave_the_others_their_turn(
    private_bus: PrivateBus, client: Client, vm: RecordingVm
) -> None:
    vm.gate = asyncio.Event()
    flooding = Connection(private_bus.address)
    await flooding.start()

    async def enable() -> str:
        try:
            await flooding.call(client.destination, client.path, M, "Enable")
        except BusyError:
            return "busy"
        return "done"

    calls = [asyncio.create_task(enable()) for _ in range(100)]
    while sum(call.done() for call in calls) < 100 - 64:
        await asyncio.sleep(0.01)
    assert (await client.call(M, "Status")).startswith("a{sv}")
    vm.gate.set()
    outcomes = await asyncio.gather(*calls)
    assert (outcomes.count("done"), outcomes.count("busy")) == (64, 36)
    await flooding.close()


async def test_a_thousand_status_calls_of_ten_clients(private_bus: PrivateBus, client: Client) -> None:
    async def ask() -> None:
        connection = Connection(private_bus.address)
        await connection.start()
        for _ in range(100):
            [status] = await connection.call(client.destination, client.path, M, "Status")
            assert status["State"].value == "Ready"
        await connection.close()

    await asyncio.gather(*(ask() for _ in range(10)))


async def test_huge_and_strange_messages_end_nothing(
    private_bus: PrivateBus, client: Client, vm: RecordingVm
) -> None:
    hostile = Connection(private_bus.address)
    await hostile.start()

    async def error(member: str, signature: str, body: list[object]) -> str:
        with pytest.raises(VmmswapError) as caught:
            await hostile.call(client.destination, client.path, M, member, signature, body)
        return getattr(caught.value, "error_name", caught.value.dbus_name)

    unknown = "org.freedesktop.DBus.Error."
    assert await error("Enable", "ay", [bytes(8 << 20)]) == unknown + "InvalidArgs"
    assert await error("Nonsense", "ay", [bytes(8 << 20)]) == unknown + "UnknownMethod"
    body: list[object] = ["x" * 100_000, "State"]
    with pytest.raises(VmmswapError, match="longer than 65536 bytes"):
        await hostile.call(
            client.destination, client.path, "org.freedesktop.DBus.Properties", "Get", "ss", body
        )
    assert hostile._transport
    strange = Message(
        kind=Kind.CALL, serial=9999, destination=client.destination, path=client.path, member="X"
    )
    for kind in (5, 77):  # no such types; the bus delivers them or cuts the sender off, and we ignore them
        encoded = bytearray(encode(strange))
        encoded[1] = kind
        hostile._transport._writer.write(bytes(encoded))
    await hostile.close()
    await client.call(M, "Enable")
    assert vm.orders == ["enable"]


async def test_a_call_without_an_interface_finds_its_member(private_bus: PrivateBus, client: Client) -> None:
    asking = Connection(private_bus.address)
    await asking.start()
    [status] = await asking.call(client.destination, client.path, "", "Status")
    assert status["Name"].value == "web"
    await asking.close()


async def test_errors_of_the_callee_are_raised_by_class(
    private_bus: PrivateBus, client: Client, vm: RecordingVm
) -> None:
    asking = Connection(private_bus.address)
    await asking.start()
    vm.fail_next = NoSpaceError("/var is full: make room")
    with pytest.raises(NoSpaceError, match="/var is full: make room"):
        await asking.call(client.destination, client.path, M, "Enable")
    await asking.close()


async def test_a_bus_that_hangs_up_while_we_introduce_ourselves(tmp_path: Path) -> None:
    path = tmp_path / "bus"

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_unix_server(hang_up, path):
        with pytest.raises(BusUnreachableError):
            await Connection(f"unix:path={path}").start()


async def test_an_address_that_is_none() -> None:
    with pytest.raises(BusUnreachableError, match="names no unix socket"):
        await Connection("tcp:host=example.org,port=1").start()
