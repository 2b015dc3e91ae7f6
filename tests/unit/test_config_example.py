# SPDX-License-Identifier: GPL-2.0-or-later
"""The example that `make install` puts into /etc changes nothing: what is commented out is the default."""

from pathlib import Path

from vmmswap.config import KEYS, Config, load

EXAMPLE = Path(__file__).parents[2] / "systemd" / "vmmswap.conf"


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
