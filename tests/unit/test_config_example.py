# SPDX-License-Identifier: GPL-2.0-or-later
"""The example that `make install` puts into /etc says what vmmswap.config knows: keys, defaults and help."""

import textwrap
from pathlib import Path

from vmmswap.config import KEYS, Config, Key, load

EXAMPLE = Path(__file__).parents[2] / "systemd" / "vmmswap.conf"
INTRODUCTION = """\
# Settings of vmmswap: for all virtual machines in [Swap], for the one called NAME in [VM NAME], which wins.
# Files in /etc/vmmswap.conf.d/*.conf are read after this one, in order of their names. What is commented out
# here is the default. A monitor reads its settings when it starts.

[Swap]
"""


def lines_of(key: Key) -> str:
    text = textwrap.fill(f"{key.help} ({key.kind})", 110, initial_indent="# ", subsequent_indent="# ")
    return f"{text}\n#{key.name}={key.default}\n"


def test_the_example_is_the_table_of_keys() -> None:
    assert EXAMPLE.read_text() == "\n".join([INTRODUCTION, *(lines_of(key) for key in KEYS)])


def test_the_example_changes_nothing(tmp_path: Path) -> None:
    assert load("web", [EXAMPLE]) == Config()
    active = tmp_path / "active.conf"
    lines = [
        line.removeprefix("#") if not line.startswith("# ") else line
        for line in EXAMPLE.read_text().splitlines()
    ]
    active.write_text("\n".join(lines))
    assert len([line for line in lines if "=" in line and not line.startswith("#")]) == len(KEYS)
    assert load("web", [active]) == Config()
