# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the settings of the store's tiers."""

from __future__ import annotations

from vmmswap.config import Config
from vmmswap.config_values import SEGMENT_BYTES, in_bytes, is_nothing
from vmmswap.engine import Tiers


def tiers_of(config: Config, guest_bytes: int) -> Tiers:
    """Return the tiers for a VM with this much memory; RamTierMax= may be a percentage of it. A small VM's
    percentage may be less than a segment, and then counts as one.
    """
    ram_max = config.ram_tier_max or "25%"  # empty: saved by version 0.1
    least_bytes = 0 if is_nothing(ram_max) else SEGMENT_BYTES
    return Tiers(
        ram_max_bytes=max(least_bytes, in_bytes(ram_max, guest_bytes)),
        ram_age_s=max(1, round(config.ram_tier_age_s)),
        has_disk=config.has_disk_tier,
        compress=config.compression == "lz4",
        encrypt=config.encryption == "yes",
    )
