# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of VMs, and what they become on the bus and in the file system."""

from __future__ import annotations

import re
from pathlib import Path

from vmmswap.errors import InvalidNameError

BUS_NAME = "org.vmmswap"
VM_BUS_PREFIX = "org.vmmswap.vm."
HOST_PATH = "/org/vmmswap"
VM_PATH_PREFIX = "/org/vmmswap/vm/"
MANAGER_INTERFACE = "org.vmmswap.Manager"
HOST_INTERFACE = "org.vmmswap.Host"

RUN_DIR = Path("/run/vmmswap")
STATE_DIR = Path("/var/lib/vmmswap")
LOG_DIR = Path("/var/log/vmmswap")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_ESCAPE = re.compile(r"_([0-9a-f]{2})")


def check_name(name: str) -> str:
    """Return a VM's name unchanged, or raise InvalidNameError."""
    if not _NAME.fullmatch(name):
        raise InvalidNameError(
            f"{name!r} is not a VM name: use 1 to 64 of A-Z a-z 0-9 _ . -, not starting with '.' or '-'"
        )
    return name


def label_of(name: str) -> str:
    """A VM's name as one element of a bus name or object path, by systemd's bus-label rule.

    Source: systemd src/basic/bus-label.c: each byte outside [A-Za-z0-9], and a leading digit, becomes _xx.
    """
    return "".join(
        char if char.isascii() and (char.isalpha() or (char.isdigit() and idx > 0)) else f"_{ord(char):02x}"
        for idx, char in enumerate(check_name(name))
    )


def name_of(label: str) -> str:
    """The VM's name that `label_of` made the label from; InvalidNameError if none gives this label."""
    name = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), label)
    if not _NAME.fullmatch(name) or label_of(name) != label:
        raise InvalidNameError(f"{label!r} is not the label of a VM name")
    return name


def bus_name_of(name: str) -> str:
    """The bus name that the VM's monitor owns."""
    return VM_BUS_PREFIX + label_of(name)


def object_path_of(name: str) -> str:
    """The object path of the VM, on its monitor's connection and on vmmswapd's."""
    return VM_PATH_PREFIX + label_of(name)


def socket_path_of(name: str) -> Path:
    """Where a VMM connects to hand its memory over."""
    return RUN_DIR / f"{check_name(name)}.sock"
