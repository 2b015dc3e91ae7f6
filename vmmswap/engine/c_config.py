# SPDX-License-Identifier: GPL-2.0-or-later
"""struct engine_config, from what Python says."""

from __future__ import annotations

from dataclasses import dataclass

from vmmswap.engine.types import EngineConfig, Mover, TierFds, Tiers


@dataclass(frozen=True, slots=True)
class EngineFds:
    """Of a predecessor, or that the VMM gave. None or -1: there is none."""

    page_map: int | None
    store: int | None
    wake: int
    tiers: TierFds
    mover: Mover | None


def fields_of(config: EngineConfig, fds: EngineFds) -> dict[str, object]:
    """All fields but swap_dir."""
    tiers = config.tiers or Tiers(0)
    return {
        "fault_threads": config.fault_threads,
        "spin_us": config.spin_us,
        "workers": config.workers,
        "fault_around_pages": config.fault_around_pages,
        "page_map_fd": -1 if fds.page_map is None else fds.page_map,
        "store_fd": -1 if fds.store is None else fds.store,
        "wake_fd": fds.wake,
        "snapshot": config.snapshot,
        "store_max_bytes": config.store_max_bytes,
        "store_keep_free_bytes": config.store_keep_free_bytes,
        "mover_pid": fds.mover.pid if fds.mover else 0,
        "mailbox_fd": fds.mover.mailbox if fds.mover else -1,
        "pagemap_fd": fds.mover.pagemap if fds.mover else -1,
        "tiers": config.tiers is not None,
        "segments_fd": fds.tiers.segments,
        "ram_fd": fds.tiers.ram,
        "disk_fd": fds.tiers.disk,
        "key_fd": fds.tiers.key,
        "ram_max_bytes": tiers.ram_max_bytes,
        "ram_age_s": tiers.ram_age_s,
        "has_disk": tiers.has_disk,
        "compress": tiers.compress,
        "encrypt": tiers.encrypt,
    }
