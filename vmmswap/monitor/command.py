# SPDX-License-Identifier: GPL-2.0-or-later
"""What a monitor is told by its command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROGRAM = "vmmswap-monitor"
EXIT_USAGE = 2


@dataclass(frozen=True, slots=True)
class Command:
    """The options of `vmmswap-monitor --help`. name: None with --check-config only."""

    name: str | None
    listen: Path | None = None
    attach: int | None = None
    region: tuple[str, ...] = ()
    force: bool = False
    qmp: str | None = None
    swap_dir: Path | None = None
    log_dir: Path | None = None
    bus: str | None = None
    config: Path | None = None
    check_config: bool = False
    debug: bool = False
