# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/dbus.md against what running services answer: every member is there, and none that is not."""

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.support.bus import REPOSITORY, Client, PrivateBus, private_bus, start, until
from tests.support.introspection import Args, Described, describe
from tests.support.recording_vm import RecordingVm
from vmmswap.bus.interface import HOST, MANAGER, OWN, Interface
from vmmswap.bus.manager import publish
from vmmswap.bus.waiting import (
    BUDGET,
    CALLS,
    CALLS_PER_SENDER,
    CHANGES,
    JOBS,
    OWN_CALLS,
    PASSWORDS,
    QUESTIONS,
    READS,
)
from vmmswap.errors import ALL, PREFIX
from vmmswap.names import BUS_NAME, HOST_PATH, bus_name_of, name_of, object_path_of

__all__ = ["private_bus"]

TEXT = (REPOSITORY / "docs" / "dbus.md").read_text()
POLICY = ET.parse(REPOSITORY / "dbus" / "org.vmmswap.policy").getroot()  # noqa: S314  our own file


def section(title: str, text: str = TEXT) -> str:
    """What stands under a heading, up to the next one of its level."""
    level = title.split(maxsplit=1)[0]
    found = re.search(
        rf"^{re.escape(title)}\n(.*?)(?=^#{{2,{len(level)}}} |\Z)", text, re.MULTILINE | re.DOTALL
    )
    assert found, f"docs/dbus.md has no heading {title!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The tables' rows whose first cell is code, without the backquotes."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in line] for line in lines]


def written(name: str, args: Args) -> str:
    """A member as the document writes it: Name(type name, ...) -> (type name, ...)."""
    ins, outs = (
        [f"{kind} {arg}" for arg, kind, way in args if (way == "out") is out] for out in (False, True)
    )
    return f"{name}({', '.join(ins)})" + (f" -> ({', '.join(outs)})" if outs else "")


def check(interface: Interface, live: Described) -> None:
    part = section(f"## Interface `{interface.name}`")
    methods = re.findall(
        r"^- `([^`]+)`(?:, action\s+`([^`]+)`)?:", section("### Methods", part), re.MULTILINE
    )
    assert [name for name, _action in methods] == [written(*item) for item in live.methods.items()]
    assert [action for _name, action in methods] == [method.action for method in interface.methods]
    if live.signals:
        assert [row[0] for row in rows(section("### Signals", part))] == [
            written(*item) for item in live.signals.items()
        ]
    if live.properties:
        items = re.findall(
            r"^- `(\w+)` \(`(\w+)`(, signalled)?, since ", section("### Properties", part), re.M
        )
        assert {name: (kind, bool(signalled)) for name, kind, signalled in items} == {
            name: (kind, not notes) for name, (kind, _access, notes) in live.properties.items()
        }


async def introspect(bus: PrivateBus, destination: str, path: str) -> dict[str, Described]:
    answer = await Client(bus, destination, path).busctl("introspect", "--xml-interface")
    return describe(answer.ok.output)


async def test_the_manager_is_as_documented(private_bus: PrivateBus) -> None:
    connection = await publish(RecordingVm("web"), private_bus.address)
    live = await introspect(private_bus, bus_name_of("web"), object_path_of("web"))
    await connection.close()
    check(MANAGER, live[MANAGER.name])


async def test_the_host_is_as_documented(private_bus: PrivateBus) -> None:
    async with start(private_bus, sys.executable, "-m", "vmmswap.host.main"):
        await until(lambda: private_bus.has_owner(BUS_NAME))
        live = await introspect(private_bus, BUS_NAME, HOST_PATH)
    check(HOST, live[HOST.name])


def test_the_errors_are_as_documented() -> None:
    names = re.findall(r"^- `(\w+)`: ", section("## Errors"), re.MULTILINE)
    assert {PREFIX + name for name in names} == {cls.dbus_name for cls in ALL}


def test_the_actions_are_as_documented() -> None:
    table = [row for row in rows(section("## Who may call")) if row[0].startswith("org.vmmswap.")]
    documented = {row[0]: set(row[1].split(", ")) for row in table}
    assert set(documented) == {action.get("id") for action in POLICY.iter("action")}
    for action, members in documented.items():
        base = action.removesuffix(OWN)
        needed = {m.name for interface in (MANAGER, HOST) for m in interface.methods if m.action == base}
        assert members == needed


def test_the_bounds_are_as_documented() -> None:
    table = section("## Errors").partition("| what waits |")[2]
    cells = [line.strip("|").split("|") for line in table.splitlines()[2:] if line.startswith("|")]
    documented = [tuple(int(cell) for cell in row[1:] if cell.strip()) for row in cells]
    rooms = [(room.per_uid, room.shared) for room in (CALLS, PASSWORDS, QUESTIONS, CHANGES, READS, JOBS)]
    assert documented == [(CALLS_PER_SENDER,), *rooms]


def test_what_waits_stays_below_what_a_system_bus_allows() -> None:
    pending = sum(room.shared + room.for_root for room in BUDGET) + OWN_CALLS * 2
    assert pending < 128


@pytest.mark.parametrize(("name", "label"), re.findall(r"`([^`/ ]+)` (?:stays|is)\n?\s*`([^`]+)`", TEXT))
def test_the_examples_of_labels(name: str, label: str) -> None:
    assert object_path_of(name).endswith(f"/{label}")
    assert name_of(label) == name


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (REPOSITORY / "docs" / Path(link)).exists(), link
