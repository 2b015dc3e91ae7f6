# SPDX-License-Identifier: GPL-2.0-or-later
"""dbus/*.xml, the tables in bus/interface.py and status.KEYS say the same."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.support.introspection import Described, describe
from vmmswap.bus.interface import HOST, MANAGER, OBJECT_MANAGER, OWN, STANDARD, Interface, node_xml
from vmmswap.status import KEYS

DBUS = Path(__file__).resolve().parents[2] / "dbus"
POLICY = ET.parse(DBUS / "org.vmmswap.policy").getroot()  # noqa: S314  our own file
EMITS_CHANGED = "org.freedesktop.DBus.Property.EmitsChangedSignal"


def shipped(name: str) -> dict[str, Described]:
    return describe((DBUS / name).read_text())


@pytest.mark.parametrize(
    ("file", "interface"), [("org.vmmswap.Manager.xml", MANAGER), ("org.vmmswap.Host.xml", HOST)]
)
def test_the_shipped_xml_is_what_the_tables_say(file: str, interface: Interface) -> None:
    assert shipped(file) == describe(node_xml((interface,)))


def test_manager_properties_are_the_status_keys() -> None:
    properties = shipped("org.vmmswap.Manager.xml")["org.vmmswap.Manager"].properties
    expected = {
        row.key: (row.signature, "read", {} if row.signalled else {EMITS_CHANGED: "false"}) for row in KEYS
    }
    assert properties == expected
    assert [name for name, (_, _, notes) in properties.items() if not notes] == ["State", "Operation"]


def test_manager_and_host_have_the_members_of_the_contract() -> None:
    manager = shipped("org.vmmswap.Manager.xml")["org.vmmswap.Manager"]
    nothing: dict[str, tuple[str, ...]] = dict.fromkeys(
        [
            "Enable",
            "Disable",
            "Trim",
            "Wake",
            "Flush",
            "StartPageFaultLogging",
            "StopPageFaultLogging",
            "Exit",
            "Detach",
        ],
        (),
    )
    assert {name: tuple(args) for name, args in manager.methods.items()} == {
        **nothing,
        "Status": (("status", "a{sv}", "out"),),
        "Configuration": (("settings", "a(ssss)", "out"),),
    }
    assert manager.signals == {"StatusChanged": [("status", "a{sv}", "")]}
    host = shipped("org.vmmswap.Host.xml")["org.vmmswap.Host"]
    assert {name: [(type_, way) for _, type_, way in args] for name, args in host.methods.items()} == {
        "ListVMs": [("a(sos)", "out")],
        "GetVM": [("s", "in"), ("o", "out")],
        "Prepare": [("s", "in"), ("s", "out")],
        "Unprepare": [("s", "in")],
        "Attach": [("s", "in"), ("u", "in"), ("o", "out")],
        "AttachWithOptions": [("s", "in"), ("u", "in"), ("a{sv}", "in"), ("o", "out")],
    }


def test_changing_methods_need_an_action_that_polkit_knows_and_reading_needs_none() -> None:
    actions = {action.get("id") for action in POLICY.iter("action")}
    needed = {method.name: method.action for interface in (MANAGER, HOST) for method in interface.methods}
    reading = {"Status", "Configuration", "ListVMs", "GetVM"}
    assert {name for name, action in needed.items() if not action} == reading
    assert {action + own for action in needed.values() if action for own in ("", OWN)} == actions
    assert all(not method.action for interface in (*STANDARD, OBJECT_MANAGER) for method in interface.methods)


def test_every_polkit_action_has_its_texts_and_asks_an_administrator_unless_the_vm_is_the_callers() -> None:
    for action in POLICY.iter("action"):
        name = action.get("id", "")
        assert action.findtext("description")
        assert (action.findtext("message") or "").endswith(".")
        assert action.findtext("defaults/allow_any") == ("yes" if name.endswith(OWN) else "auth_admin")
        implied = action.findtext("annotate")
        assert implied == (None if name.endswith(OWN) else name + OWN)
