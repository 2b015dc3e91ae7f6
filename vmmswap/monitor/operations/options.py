# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's options for a job, from the configuration."""

from __future__ import annotations

from vmmswap.config import Config
from vmmswap.config_values import in_bytes
from vmmswap.engine import Mode, PinOptions, SwapOutOptions
from vmmswap.handoff.region import PAGE_SIZE

_DEFAULT_SETTLE_MS = 10_000


def swap_out_options(
    config: Config, total_pages: int, *, promised_unpinned: bool, qmp_drained: bool = False
) -> SwapOutOptions:
    """total_pages: of the VM. promised_unpinned: the VMM says that nothing pins its memory. qmp_drained:
    there is a QMP session for draining.
    """
    return SwapOutOptions(
        mode=Mode[config.mode.upper()],
        max_passes=config.max_passes,
        until_resident_pages=config.until_resident_pages,
        idle_pages_max=in_bytes(config.idle_set_max, total_pages * PAGE_SIZE) // PAGE_SIZE,
        freeze_timeout_ms=max(1, round(config.freeze_timeout_s * 1000)),
        freeze_limit_ms=max(1, round(config.freeze_limit_s * 1000)),
        pins=_pin_options(config, promised_unpinned, qmp_drained),
    )


def _pin_options(config: Config, promised_unpinned: bool, qmp_drained: bool) -> PinOptions | None:
    if config.pin_check == "off":
        return None
    auto = config.pin_check == "auto"
    settle_ms = config.pin_settle_ms
    if config.pin_check == "settle":
        settle_ms = settle_ms or _DEFAULT_SETTLE_MS
    return PinOptions(
        bpf=auto or config.pin_check == "bpf",
        collapse=auto or config.pin_check == "collapse",
        qmp_drained=qmp_drained and config.may_drain,
        promised_unpinned=auto and promised_unpinned,
        settle_ms=settle_ms if auto or config.pin_check == "settle" else 0,
    )
