# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs what a document says: writes its files and types its commands, as root, in a booted machine.

In a fenced block (```), a first or second line such as `# /etc/x.conf` makes it that file. All other blocks
of `sh` are commands, and so are those lines of indented blocks that begin with the name of a PROGRAM.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

from tests.support.machine import Machine

PROGRAMS = (
    *("vmmswapctl", "vmmswap-monitor", "busctl", "gdbus", "journalctl", "systemctl", "systemd-analyze"),
    *("usermod", "useradd", "make", "gcc", "apt-get", "/usr/"),
)
_FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:(?<=\n\n)|\A)((?:    .*\n|\n(?=    ))+)")
_PATH = re.compile(r"\A(?:#!.*\n)?(?:#|//|<!--) (/\S+)(?: -->)?\n")
_COMMENT = re.compile(r"\s+# .*$")


@dataclasses.dataclass(frozen=True)
class File:
    """A file that the document tells to write."""

    path: str
    text: str


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line, its continuation lines joined, without the comment after it."""

    line: str


def _commands(text: str, programs: tuple[str, ...] | None) -> Iterator[Command]:
    for line in text.replace("\\\n", "").splitlines():
        command = re.sub(r"\s{2,}", " ", _COMMENT.sub("", line)).strip()
        if command and not command.startswith("#") and (programs is None or command.startswith(programs)):
            yield Command(command)


def fenced(text: str) -> list[File | Command]:
    """Files and commands of all fenced blocks, in order. One without a path, and not of sh, is neither."""
    found: list[File | Command] = []
    for language, body in _FENCED.findall(text):
        if path := _PATH.match(body):
            found.append(File(path[1], body if body.startswith("#!") else body.partition("\n")[2]))
        elif language == "sh":
            found += _commands(body, None)
    return found


def indented(text: str) -> list[Command]:
    """The commands of all indented blocks, in order."""
    text = _FENCED.sub("", text)
    return [command for block in _INDENTED.findall(text) for command in _commands(block, PROGRAMS)]


class Typist:
    """Types into one machine, and remembers what came back."""

    def __init__(self, machine: Machine, names: Mapping[str, str] | None = None) -> None:
        """`names` are words in capitals that a document leaves open, and what to type for them."""
        self.machine = machine
        self.names = dict(names or {})
        self.typed: list[tuple[str, str]] = []

    def write(self, file: File) -> None:
        path = self.machine.path(file.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)
        path.chmod(0o755 if file.text.startswith("#!") else 0o644)
        self.typed.append((f"editor {file.path}", ""))

    def filled_in(self, command: Command) -> str:
        """The command line, with what a document leaves open."""
        line = command.line
        for name, value in self.names.items():
            line = re.sub(rf"\b{name}\b", value, line)
        return line

    def type(self, command: Command, user: str | None = None) -> str:
        """Its output, standard error included. MachineError if it fails."""
        line = self.filled_in(command)
        output = self.machine.sh(f"cd /root; {{ {line}\n}} 2>&1", user=user, timeout_s=600).stdout
        self.typed.append((command.line, output))
        return output
