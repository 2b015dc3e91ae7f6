# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of its memory QEMU itself calls RAM of the guest: x-query-ramblock and query-memdev (QEMU 6.2).

The guest's RAM is what a memory backend has: the machine's own (pc.ram), and those of DIMMs. All other
blocks are ROMs, firmware tables and video memory. QEMU 8.0 and newer print where a block is (HVA); an older
one prints its size only.

The answer is the VMM's, so it may say anything: it chooses among mappings that are known to be private,
anonymous, writable and kept from children, and adds none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

from vmmswap.attach.private_memory import Seen
from vmmswap.errors import NotSupportedError
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.linux.maps import Mapping

_log = logging.getLogger("vmmswap.attach")

_COLUMNS = ["Block", "Name", "PSize", "Offset", "Used", "Total"]
_WITH_ADDRESSES = [*_COLUMNS, "HVA", "RO"]
_MAX_BLOCKS = 4096
_MAX_ROW = 512  # characters; a block's name has 255 at most
_MAX_ADDRESS = 1 << 64
_SHOWN = 120  # characters of what QEMU says, in a message


@dataclass(frozen=True, slots=True)
class RamBlock:
    """One of QEMU's blocks of memory. addr: in the VMM; None if QEMU does not print it."""

    name: str
    is_ram: bool
    size_bytes: int
    addr: int | None = None

    @property
    def span(self) -> tuple[int, int]:
        """Start and end; empty without an address."""
        return (0, 0) if self.addr is None else (self.addr, self.addr + self.size_bytes)

    def is_in(self, mapping: Mapping) -> bool:
        start, end = self.span
        return mapping.start <= start < end <= mapping.end


@dataclass(frozen=True, slots=True)
class RamBlocks:
    """All of QEMU's blocks."""

    blocks: tuple[RamBlock, ...]
    has_addresses: bool

    def choose(self, seen: Iterable[Seen]) -> list[Seen]:
        """What was seen, less what is no RAM of the guest. All of it, with a warning, if nothing would be
        left.
        """
        before = list(seen)
        chosen = [part for item in before for part in self._parts(item)]
        if all(item.refusal for item in chosen) and not all(item.refusal for item in before):
            _log.warning("no RAM that QEMU names is found in its mappings: it is chosen by size and shape")
            return before
        return chosen

    def _parts(self, item: Seen) -> list[Seen]:
        if item.refusal:
            return [item]
        return self._by_address(item) if self.has_addresses else [self._by_size(item)]

    def _by_address(self, item: Seen) -> list[Seen]:
        mapping = item.mapping
        if inside := [block for block in self.blocks if block.is_ram and block.is_in(mapping)]:
            return [
                Seen(
                    replace(mapping, start=block.span[0], end=block.span[1]), "", f"QEMU's RAM {block.name!a}"
                )
                for block in sorted(inside, key=lambda block: block.span)
            ]
        names = [block.name for block in self.blocks if not block.is_ram and mapping.overlaps(*block.span)]
        return [replace(item, refusal=_no_ram(names) if names else "QEMU names no RAM there")]

    def _by_size(self, item: Seen) -> Seen:
        alike = [block for block in self.blocks if block.size_bytes == item.mapping.size_bytes]
        if not alike or any(block.is_ram for block in alike):
            return item
        return replace(item, refusal=f"by its size {_no_ram(block.name for block in alike)}")


def _no_ram(names: Iterable[str]) -> str:
    return f"QEMU's {', '.join(ascii(name) for name in names)[:_SHOWN]}, which is no RAM of the guest"


def parse_ram_blocks(ramblock: object, memdev: object) -> RamBlocks:
    """The answers to x-query-ramblock and query-memdev. NotSupportedError if they are not QEMU's."""
    text = ramblock.get("human-readable-text") if isinstance(ramblock, dict) else None
    if not isinstance(text, str):
        raise _malformed("x-query-ramblock", ramblock)
    if not isinstance(memdev, list):
        raise _malformed("query-memdev", memdev)
    backends = {item["id"] for item in memdev if isinstance(item, dict) and isinstance(item.get("id"), str)}
    head, *rows = text.splitlines() or [""]
    columns = head.split()
    has_addresses = columns[: len(_WITH_ADDRESSES)] == _WITH_ADDRESSES
    if not has_addresses and columns != _COLUMNS:
        raise _malformed("x-query-ramblock", head)
    if len(rows) > _MAX_BLOCKS:
        raise NotSupportedError(f"QEMU has {len(rows)} RAM blocks: at most {_MAX_BLOCKS} are supported")
    blocks = [_block(row, len(columns), backends, has_addresses=has_addresses) for row in rows if row.strip()]
    if has_addresses:
        _check(block for block in blocks if block.is_ram)
    return RamBlocks(tuple(blocks), has_addresses)


def _block(row: str, columns: int, backends: set[str], *, has_addresses: bool) -> RamBlock:
    # The page size is two words, "4 KiB", and the two words of the first column's heading are one name.
    if len(row) > _MAX_ROW:
        raise _malformed("x-query-ramblock", row)
    try:
        name, *fields = row.rsplit(maxsplit=columns - 1)
        _size, _unit, _offset, _used, total, *more = fields
        size_bytes = int(total, 16)
        addr = int(more[0], 16) if has_addresses else None
    except (ValueError, IndexError):
        raise _malformed("x-query-ramblock", row) from None
    name = name.strip()
    # An old machine type names a block after the object's whole path.
    return RamBlock(name, name.removeprefix("/objects/") in backends, size_bytes, addr)


def _check(blocks: Iterable[RamBlock]) -> None:
    spans = sorted(((block.span, block) for block in blocks), key=lambda item: item[0])
    for (start, end), block in spans:
        if start % PAGE_SIZE or end % PAGE_SIZE or not 0 < start < end <= _MAX_ADDRESS:
            raise NotSupportedError(
                f"QEMU says that its RAM {block.name[:_SHOWN]!a} is at {start:#x}-{end:#x}"
            )
    for ((_, end), block), ((start, _), other) in pairwise(spans):
        if start < end:
            names = f"{block.name[:_SHOWN]!a} and {other.name[:_SHOWN]!a}"
            raise NotSupportedError(f"QEMU says that its RAM {names} overlap at {start:#x}")


def _malformed(command: str, answer: object) -> NotSupportedError:
    return NotSupportedError(f"QEMU answers {command} with {ascii(answer)[:_SHOWN]}")
