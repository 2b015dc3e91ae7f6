# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks QEMU by QMP which of its memory is RAM of the guest."""

from __future__ import annotations

import asyncio
import logging

from vmmswap.attach.ram_blocks import RamBlocks, parse_ram_blocks
from vmmswap.errors import VmmswapError
from vmmswap.monitor.qmp import Qmp
from vmmswap.reasons import reason_of

_log = logging.getLogger("vmmswap.attached")

_LIMIT_S = 3.0


async def ask_ram_blocks(qmp_path: str, pid: int) -> RamBlocks | None:
    """None, with a warning, if QEMU does not say it in time, or not as QEMU does."""
    try:
        async with asyncio.timeout(_LIMIT_S):
            qmp = await Qmp.connect(qmp_path, pid)
            try:
                ramblock = await qmp.execute("x-query-ramblock")
                memdev = await qmp.execute("query-memdev")
            finally:
                qmp.close()
        return parse_ram_blocks(ramblock, memdev)
    except (VmmswapError, TimeoutError) as error:
        reason = reason_of(error) or f"{qmp_path} does not answer within {_LIMIT_S:g} s"
        _log.warning("QEMU does not say which memory is RAM, which is chosen by size and shape: %s", reason)
        return None
