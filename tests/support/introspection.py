# SPDX-License-Identifier: GPL-2.0-or-later
"""Introspection XML as values that compare: whitespace, comments and the order of elements do not matter."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass

Args = list[tuple[str, str, str]]  # name, type, direction ("" for signals)


@dataclass(frozen=True)
class Described:
    """One interface. Properties are (type, access, annotations)."""

    methods: dict[str, Args]
    signals: dict[str, Args]
    properties: dict[str, tuple[str, str, dict[str, str]]]
    annotations: dict[str, str]


def describe(xml: str) -> dict[str, Described]:
    """The interfaces of a node by name."""
    return {
        node.attrib["name"]: Described(
            methods={item.attrib["name"]: _args(item) for item in node.iter("method")},
            signals={item.attrib["name"]: _args(item) for item in node.iter("signal")},
            properties={
                item.attrib["name"]: (item.attrib["type"], item.attrib["access"], _annotations(item))
                for item in node.iter("property")
            },
            annotations=_annotations(node),
        )
        for node in ET.fromstring(xml).iter("interface")  # noqa: S314  our own, or our service's
    }


def _args(member: ET.Element) -> Args:
    return [(arg.attrib["name"], arg.attrib["type"], arg.get("direction", "")) for arg in member.iter("arg")]


def _annotations(element: ET.Element) -> dict[str, str]:
    return {note.attrib["name"]: note.attrib["value"] for note in element.findall("annotation")}
