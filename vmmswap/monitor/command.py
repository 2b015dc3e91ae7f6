# SPDX-License-Identifier: GPL-2.0-or-later
"""What a monitor is told by its command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmmswap.config_checks import ConfigError
from vmmswap.errors import InternalError, InvalidNameError, VmmswapError

PROGRAM = "vmmswap-monitor"
EXIT_USAGE = 2
# The unit restarts us after EXIT_FAILURE and not after the others: the last try would lose what the fd store
# keeps. So while it keeps a VM we exit with EXIT_FAILURE only.
EXIT_FAILURE = 1
EXIT_UNAVAILABLE = 69  # EX_UNAVAILABLE
EXIT_BUG = 70  # EX_SOFTWARE
EXIT_CONFIG = 78  # EX_CONFIG


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


def exit_status_of(error: VmmswapError) -> int:
    match error:
        case ConfigError():
            return EXIT_CONFIG
        case InvalidNameError():
            return EXIT_USAGE
        case InternalError():
            return EXIT_BUG
    return EXIT_UNAVAILABLE
