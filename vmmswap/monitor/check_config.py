# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap-monitor --check-config."""

from __future__ import annotations

import sys
from pathlib import Path

from vmmswap import config
from vmmswap.config_checks import uid_of
from vmmswap.config_listing import listing
from vmmswap.errors import VmmswapError
from vmmswap.monitor.command import PROGRAM, exit_status_of
from vmmswap.monitor.settings import Settings
from vmmswap.names import check_name


def check_config(name: str | None, path: Path | None) -> int:
    """Print the settings that a monitor would start with. All files are checked, whatever the name."""
    try:
        paths = None if path is None else [path]
        found, origins = config.load_with_origins("" if name is None else check_name(name), paths)
        if found.owner:
            uid_of(found.owner)
    except VmmswapError as error:
        print(f"{PROGRAM}: {error.message}", file=sys.stderr)
        return exit_status_of(error)
    if name is not None:
        print("\n".join(listing(Settings(name, path, found, origins).rows())))
    return 0
