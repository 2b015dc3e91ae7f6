# SPDX-License-Identifier: GPL-2.0-or-later
"""What a monitor is started with."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path

from vmmswap.attach.options import Options
from vmmswap.config import Config
from vmmswap.monitor.keep.keeper import Keeper
from vmmswap.monitor.settings import Settings


@dataclass(slots=True)
class Setup:
    name: str
    config: Config
    settings: Settings
    swap_dir: Path
    state_dir: Path  # of the ledger of bytes written
    log_dir: Path
    bus: str | None
    listener: socket.socket | None
    config_path: Path | None = None  # the configuration to read again; None: the host's
    kept: dict[str, int] = field(default_factory=dict)  # from the fd store, by name
    fd_store: bool = False
    starts_on_demand: bool = False  # whoever connects starts the next monitor
    journal: bool = False
    keeper: Keeper | None = None
    attach: int | None = None  # the pidfd of a VMM to take over at once
    attach_options: Options = field(default_factory=Options)
    attach_qmp: str | None = None
