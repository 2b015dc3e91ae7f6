# SPDX-License-Identifier: GPL-2.0-or-later
"""What whoever orders an attach may choose. Not in attach.py: only monitors that attach load that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmmswap.linux.access import ROOT, User

if TYPE_CHECKING:
    from vmmswap.attach.ram_blocks import RamBlocks


@dataclass(frozen=True, slots=True)
class Options:
    """regions: (start, end) addresses in the VMM, instead of all that looks like guest memory.

    force: attach also where we cannot know that it is harmless. user: who wants it; to processes that the
    user may not trace, root attaches only. blocks: what QEMU says of its memory, if it was asked.
    """

    regions: tuple[tuple[int, int], ...] = ()
    force: bool = False
    user: User = ROOT
    blocks: RamBlocks | None = None
