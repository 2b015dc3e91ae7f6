# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VMM with private memory, which was attached to, has mapped and unmapped since."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vmmswap.attach import private_memory
from vmmswap.attach import target as target_module
from vmmswap.attach.memory import MIN_BYTES
from vmmswap.attach.planting import Span, set_spans
from vmmswap.attach.ram_blocks import RamBlocks
from vmmswap.errors import NotSupportedError
from vmmswap.handoff.messages import MAX_REGIONS
from vmmswap.handoff.region import PAGE_SIZE, Region
from vmmswap.linux.maps import Mapping


@dataclass(frozen=True, slots=True)
class PrivateView:
    """guest: the mappings that are guest memory, of any size."""

    guest: tuple[Mapping, ...]

    def has(self, region: Region) -> bool:
        """All of it."""
        return any(item.start <= region.addr and region.end <= item.end for item in self.guest)

    def further(self, known: Iterable[Region], blocks: RamBlocks | None = None) -> list[Region]:
        """What is guest memory besides, by the rules of attach. blocks: what QEMU says now."""
        before = list(known)
        seen = [private_memory.Seen(item, "") for item in self.guest if item.size_bytes >= MIN_BYTES]
        return [
            item.region
            for item in (seen if blocks is None else blocks.choose(seen))
            if not item.refusal
            and not any(item.mapping.overlaps(region.addr, region.end) for region in before)
        ]


def look_at_private(pidfd: int) -> PrivateView:
    """Blocks, longer for a larger VM: call it on a thread."""
    target = target_module.look_again(pidfd)
    found = private_memory.find(target, PAGE_SIZE)
    return PrivateView(tuple(item.mapping for item in found if not item.refusal))


def serve_further(pidfd: int, mailbox: int, spans: Sequence[Span], *, force: bool) -> None:
    """The planted thread moves these, and nothing else, from now on."""
    from vmmswap.attach import hold  # noqa: PLC0415  only here

    if len(spans) > MAX_REGIONS:
        raise NotSupportedError(
            f"the VMM has {len(spans)} mappings of guest memory: at most {MAX_REGIONS} are supported"
        )
    hold.run(target_module.look_at(pidfd), lambda thread: set_spans(thread, mailbox, spans), force=force)
