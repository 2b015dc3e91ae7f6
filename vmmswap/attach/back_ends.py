# SPDX-License-Identifier: GPL-2.0-or-later
"""vhost-user back-ends that may come anew at any time: one that comes while memory is out reads zeros before
anybody sees it.

Here from the command line of QEMU: a character device of a vhost-user device that listens, or connects again;
and of cloud-hypervisor: any vhost-user device.
What was added since is asked of QEMU itself (monitor/mappers/added_back_ends.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmmswap.errors import NotSupportedError

_ON = ("", "on", "yes", "true", "y")


@dataclass(frozen=True, slots=True)
class CommandLine:
    """users: the character devices of vhost-user devices. again: whether a character device's other end may
    come anew; of those that are given there.
    """

    users: frozenset[str]
    again: Mapping[str, bool]

    @property
    def reconnectable(self) -> str | None:
        """A vhost-user device's character device whose back-end may come anew."""
        return next((name for name in sorted(self.users) if self.again.get(name)), None)


def read_command_line(pid: int) -> CommandLine:
    """That of a process; empty if it may not be read."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        raw = b""
    return parse_command_line(raw.decode(errors="replace").split("\0"))


def parse_command_line(words: Iterable[str]) -> CommandLine:
    users: set[str] = set()
    again: dict[str, bool] = {}
    option = ""
    for word in words:
        if word.startswith("-"):
            option, _, word = word.lstrip("-").partition("=")  # noqa: PLW2901 - --net=VALUE is cloud-hypervisor's
            if not word:
                continue
        options = _options_of(word)
        if "vhost-user" in word and "chardev" in options:
            users.add(options["chardev"])
        if options.get("vhost_user", "").lower() in ("on", "true") or (
            option == "fs" and "socket" in options
        ):
            users.add(word)  # cloud-hypervisor's, which connects again whatever one says
            again[word] = True
        if option == "chardev" and "id" in options:
            again[options["id"]] = _may_come_again(options)
    return CommandLine(frozenset(users), again)


def _options_of(word: str) -> dict[str, str]:
    """QEMU's `driver,key=value,flag`, or the same as a JSON object, as libvirt writes it."""
    if word.startswith("{"):
        try:
            value = json.loads(word)
        except (ValueError, RecursionError):
            value = None
        return {key: _text_of(item) for key, item in value.items()} if isinstance(value, dict) else {}
    return {key: value for key, _, value in (item.partition("=") for item in word.split(","))}


def _text_of(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _may_come_again(options: Mapping[str, str]) -> bool:
    connects = any(options.get(key, "0") != "0" for key in ("reconnect", "reconnect-ms"))
    return connects or options.get("server", "off") in _ON


def refusal(target: object, chardev: str) -> NotSupportedError:
    return NotSupportedError(
        f"{target} lets a vhost-user back-end connect again (chardev {chardev}): one that comes while memory"
        " is out would read zeros. Configure it without reconnect= and server= (QEMU), or attach with the"
        " option force and restart no back-end while memory is out"
    )


def check_back_ends(target: object, pid: int) -> CommandLine:
    """NotSupportedError if the command line says that a back-end may come anew."""
    found = read_command_line(pid)
    if chardev := found.reconnectable:
        raise refusal(target, chardev)
    return found
