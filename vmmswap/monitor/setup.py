# SPDX-License-Identifier: GPL-2.0-or-later
"""What a monitor is started with."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vmmswap.config import Config
from vmmswap.monitor.keep.fdstore import FdStore
from vmmswap.monitor.recovery import Found
from vmmswap.monitor.settings import Settings
from vmmswap.monitor.start_turn import StartTurn

if TYPE_CHECKING:
    from vmmswap.attach.options import Options


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
    store: FdStore
    config_path: Path | None = None  # the configuration to read again; None: the host's
    kept: dict[str, int] = field(default_factory=dict)  # from the fd store, by name
    found: Found | None = None  # the VM that a predecessor left, which is served
    turn: StartTurn = field(default_factory=StartTurn)
    starts_on_demand: bool = False  # whoever connects starts the next monitor
    journal: bool = False
    attach: int | None = None  # the pidfd of a VMM to take over at once
    attach_options: Options | None = None
    attach_qmp: str | None = None
