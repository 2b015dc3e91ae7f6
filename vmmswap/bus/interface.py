# SPDX-License-Identifier: GPL-2.0-or-later
"""Our D-Bus interfaces as tables, and the introspection XML made from them.

org.vmmswap.Manager's properties come from status.KEYS. dbus/*.xml is this, written down for people and for
tools that read files; a test compares the two, and both with what a running service answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from vmmswap.names import HOST_INTERFACE, MANAGER_INTERFACE
from vmmswap.status import KEYS

CONTROL = "org.vmmswap.control"
LOG = "org.vmmswap.log"
ATTACH = "org.vmmswap.attach"
RELEASE = "org.vmmswap.release"
OWN = "-own"  # behind an action: the same for the user whose VM it is

PROPERTIES_INTERFACE = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER_INTERFACE = "org.freedesktop.DBus.ObjectManager"

_DOCTYPE = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)
_EMITS_CHANGED = "org.freedesktop.DBus.Property.EmitsChangedSignal"


@dataclass(frozen=True, slots=True)
class Arg:
    """One argument: its name and its D-Bus type."""

    name: str
    signature: str


@dataclass(frozen=True, slots=True)
class Method:
    """One method. `action` is the polkit action that its callers need; "" is for everyone."""

    name: str
    ins: tuple[Arg, ...] = ()
    outs: tuple[Arg, ...] = ()
    action: str = ""

    @property
    def in_signature(self) -> str:
        return "".join(arg.signature for arg in self.ins)

    @property
    def out_signature(self) -> str:
        return "".join(arg.signature for arg in self.outs)


@dataclass(frozen=True, slots=True)
class Signal:
    name: str
    args: tuple[Arg, ...] = ()

    @property
    def signature(self) -> str:
        return "".join(arg.signature for arg in self.args)


@dataclass(frozen=True, slots=True)
class Property:
    """One read-only property; `signalled` if PropertiesChanged reports its changes."""

    name: str
    signature: str
    signalled: bool


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    methods: tuple[Method, ...] = ()
    signals: tuple[Signal, ...] = ()
    properties: tuple[Property, ...] = field(default=())

    def method(self, name: str) -> Method | None:
        return next((method for method in self.methods if method.name == name), None)

    def property(self, name: str) -> Property | None:
        return next((item for item in self.properties if item.name == name), None)


STATUS_CHANGED = Signal("StatusChanged", (Arg("status", "a{sv}"),))

MANAGER = Interface(
    MANAGER_INTERFACE,
    methods=(
        Method("Enable", action=CONTROL),
        Method("Disable", action=CONTROL),
        Method("Trim", action=CONTROL),
        Method("Wake", action=CONTROL),
        Method("Flush", action=CONTROL),
        Method("Status", outs=(Arg("status", "a{sv}"),)),
        Method("Configuration", outs=(Arg("settings", "a(ssss)"),)),
        Method("StartPageFaultLogging", action=LOG),
        Method("StopPageFaultLogging", action=LOG),
        Method("Exit", action=RELEASE),
        Method("Detach", action=RELEASE),
    ),
    signals=(STATUS_CHANGED,),
    properties=tuple(Property(row.key, row.signature, row.signalled) for row in KEYS),
)

HOST = Interface(
    HOST_INTERFACE,
    methods=(
        Method("ListVMs", outs=(Arg("vms", "a(sos)"),)),
        Method("GetVM", ins=(Arg("name", "s"),), outs=(Arg("path", "o"),)),
        Method("Prepare", ins=(Arg("name", "s"),), outs=(Arg("socket", "s"),), action=ATTACH),
        Method("Unprepare", ins=(Arg("name", "s"),), action=RELEASE),
        Method("Attach", ins=(Arg("name", "s"), Arg("pid", "u")), outs=(Arg("path", "o"),), action=ATTACH),
        Method(
            "AttachWithOptions",
            ins=(Arg("name", "s"), Arg("pid", "u"), Arg("options", "a{sv}")),
            outs=(Arg("path", "o"),),
            action=ATTACH,
        ),
    ),
)

INTROSPECTABLE = Interface(
    "org.freedesktop.DBus.Introspectable", methods=(Method("Introspect", outs=(Arg("xml_data", "s"),)),)
)
PEER = Interface(
    "org.freedesktop.DBus.Peer",
    methods=(Method("Ping"), Method("GetMachineId", outs=(Arg("machine_uuid", "s"),))),
)
PROPERTIES_CHANGED = Signal(
    "PropertiesChanged",
    (Arg("interface_name", "s"), Arg("changed_properties", "a{sv}"), Arg("invalidated_properties", "as")),
)
PROPERTIES = Interface(
    PROPERTIES_INTERFACE,
    methods=(
        Method("Get", (Arg("interface_name", "s"), Arg("property_name", "s")), (Arg("value", "v"),)),
        Method("GetAll", (Arg("interface_name", "s"),), (Arg("properties", "a{sv}"),)),
        Method("Set", (Arg("interface_name", "s"), Arg("property_name", "s"), Arg("value", "v"))),
    ),
    signals=(PROPERTIES_CHANGED,),
)
INTERFACES_ADDED = Signal(
    "InterfacesAdded", (Arg("object_path", "o"), Arg("interfaces_and_properties", "a{sa{sv}}"))
)
INTERFACES_REMOVED = Signal("InterfacesRemoved", (Arg("object_path", "o"), Arg("interfaces", "as")))
OBJECT_MANAGER = Interface(
    OBJECT_MANAGER_INTERFACE,
    methods=(Method("GetManagedObjects", outs=(Arg("objects", "a{oa{sa{sv}}}"),)),),
    signals=(INTERFACES_ADDED, INTERFACES_REMOVED),
)

STANDARD: tuple[Interface, ...] = (PEER, INTROSPECTABLE, PROPERTIES)


def _arg_xml(arg: Arg, direction: str = "") -> str:
    way = f' direction="{direction}"' if direction else ""
    return f'<arg name="{arg.name}" type="{arg.signature}"{way}/>'


def _element(indent: str, tag: str, attributes: str, children: list[str]) -> str:
    if not children:
        return f"{indent}<{tag} {attributes}/>"
    return "\n".join(
        [f"{indent}<{tag} {attributes}>", *(f"{indent}  {child}" for child in children), f"{indent}</{tag}>"]
    )


def interface_xml(interface: Interface) -> str:
    """The interface's element of the introspection XML."""
    lines = [f'  <interface name="{interface.name}">']
    for method in interface.methods:
        args = [_arg_xml(arg, "in") for arg in method.ins] + [_arg_xml(arg, "out") for arg in method.outs]
        lines.append(_element("    ", "method", f'name="{method.name}"', args))
    for signal in interface.signals:
        lines.append(
            _element("    ", "signal", f'name="{signal.name}"', [_arg_xml(arg) for arg in signal.args])
        )
    for item in interface.properties:
        attributes = f'name="{item.name}" type="{item.signature}" access="read"'
        notes = [] if item.signalled else [f'<annotation name="{_EMITS_CHANGED}" value="false"/>']
        lines.append(_element("    ", "property", attributes, notes))
    lines.append("  </interface>")
    return "\n".join(lines)


def node_xml(interfaces: Iterable[Interface], children: Iterable[str] = ()) -> str:
    """What Introspect answers for an object with these interfaces and these child nodes."""
    parts = [interface_xml(interface) for interface in interfaces]
    parts += [
        f'  <node name="{child}"/>' for child in children
    ]  # path elements: letters, digits, underscores
    return f"{_DOCTYPE}<node>\n" + "".join(part + "\n" for part in parts) + "</node>\n"
