# SPDX-License-Identifier: GPL-2.0-or-later
"""What an engine is made with: the settings that it needs, in its own terms."""

from __future__ import annotations

from pathlib import Path

from vmmswap.config import Config
from vmmswap.config_values import in_bytes
from vmmswap.disk_limits import disk_limits
from vmmswap.engine import EngineConfig
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.monitor.backing import Backing
from vmmswap.monitor.tiers import tiers_of


def engine_config(
    config: Config, swap_dir: Path, backing: Backing, *, guest_bytes: int, has_tiers: bool
) -> EngineConfig:
    """has_tiers: the VM's pages go to the tiers. Registration decides that."""
    return EngineConfig(
        swap_dir,
        config.fault_threads,
        config.spin_us,
        config.workers,
        backing.source_is_store,
        *disk_limits(config, swap_dir),
        tiers_of(config, guest_bytes) if has_tiers else None,
        in_bytes(config.fault_around, 0) // PAGE_SIZE,
    )
