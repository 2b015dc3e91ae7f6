# SPDX-License-Identifier: GPL-2.0-or-later
"""What a successor of this monitor must know beside the fds: a small JSON record in a memfd that outlives us.

The memfd stays in the fd store and is written in place, so that a change needs no message to systemd. It
holds two records with a number and a checksum; the older one is overwritten. Whoever is killed while writing
leaves the other one whole.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vmmswap.errors import StorageFailedError

VERSION = 1
VMM_KEY = 0  # of the process that registers
_SLOT_BYTES = 1 << 20
_HEADER = struct.Struct("<8sQII")  # magic, number, bytes of JSON, their CRC-32
_MAGIC = b"vmmswap\n"


@dataclass(frozen=True, slots=True)
class RegionRecord:
    """Guest memory. addr: where the VMM has it. memfd: which of the VM's memfds."""

    addr: int
    page_idx: int
    pages: int
    memfd: int
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process with a userfaultfd, which the store has as uffd-KEY. ranges: (addr, page_idx, pages)."""

    key: int
    pid: int  # 0: not known
    ranges: tuple[tuple[int, int, int], ...]
    is_proven: bool = True
    dummy_page: int = 0  # its address; 0: there is none
    is_forked: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    name: str = ""
    uid: int = 0
    pins: bool = True
    qmp: str = ""
    attached: bool = False  # no connection belongs to the VM
    forced: bool = False  # attached with force: what only warns then does so at each Enable too
    chosen: bool = False  # attached to regions that were given by hand: no other memory is looked for
    ordered_by: int = 0  # attached by this uid: what it may not trace is left, but for root
    ordered_by_gid: int = -1  # -1: not known, which is no process's
    snapshot: bool = False  # private memory, filled from a snapshot's memory file, which is the store
    private: bool = False  # private memory, which the VMM moves as the mailbox asks
    releasing: bool = False  # its connection has ended: all in, and let it go
    memfds: tuple[int, ...] = ()  # the numbers that still have one, as memfd-N
    files: int = 0  # how many numbers were given
    regions: tuple[RegionRecord, ...] = ()
    processes: tuple[ProcessRecord, ...] = ()
    next_key: int = 0
    vmm_key: int = 0  # of the VMM: another process may have taken the VM over from who registered
    restarts: int = 0
    interrupted: int = 0  # how many monitors in a row died during a job
    wants_out: bool = False
    resident_before: int = 0  # pages, when the first one went out; 0: not known
    tables_before: int = 0  # bytes of the processes' page tables then; 0: not known
    queued: bool = False  # a swap-out was accepted, and waits for its turn
    logging: bool = False
    is_held: bool = False  # we have stopped the VM by QMP, and must let it run again
    config: dict[str, Any] = field(default_factory=dict)


def _from_json(value: dict[str, Any]) -> Manifest:
    try:
        manifest = Manifest(**value)
    except TypeError as error:  # fields that a newer one has
        raise StorageFailedError(
            f"the record of the VM was written by another version of vmmswap ({error}): use that version"
        ) from None
    return replace(
        manifest,
        memfds=tuple(manifest.memfds),
        regions=tuple(RegionRecord(**region) for region in value["regions"]),
        processes=tuple(
            ProcessRecord(**{**item, "ranges": tuple((a, i, n) for a, i, n in item["ranges"])})
            for item in value["processes"]
        ),
    )


class ManifestFile:
    """Owns the memfd."""

    def __init__(self, fd: int | None = None) -> None:
        """A new one, or that of a predecessor."""
        self.fd = os.memfd_create("vmmswap-manifest", os.MFD_CLOEXEC) if fd is None else fd
        self._number = 0
        if fd is None:
            os.ftruncate(self.fd, 2 * _SLOT_BYTES)

    def write(self, manifest: Manifest) -> None:
        """Replace the record. StorageFailedError if it is too large to be one."""
        text = json.dumps({"version": VERSION, **asdict(manifest)}, separators=(",", ":")).encode()
        if len(text) > _SLOT_BYTES - _HEADER.size:
            raise StorageFailedError(
                f"the record of the VM has {len(text)} bytes: too many processes or regions"
            )
        self._number += 1
        header = _HEADER.pack(_MAGIC, self._number, len(text), zlib.crc32(text))
        os.pwrite(self.fd, header + text, self._number % 2 * _SLOT_BYTES)

    def read(self) -> Manifest:
        """The newest whole record. StorageFailedError if there is none that we can read."""
        records = [record for record in map(self._read_slot, (0, 1)) if record]
        if not records:
            raise StorageFailedError("the record of the VM in the fd store is damaged")
        self._number, value = max(records, key=lambda record: record[0])
        if value.pop("version", None) != VERSION:
            raise StorageFailedError(
                "the record of the VM was written by another version of vmmswap: use that version"
            )
        return _from_json(value)

    def _read_slot(self, slot: int) -> tuple[int, dict[str, Any]] | None:
        raw = os.pread(self.fd, _SLOT_BYTES, slot * _SLOT_BYTES)
        if len(raw) < _HEADER.size:
            return None
        magic, number, size, checksum = _HEADER.unpack_from(raw)
        text = raw[_HEADER.size : _HEADER.size + size]
        if magic != _MAGIC or len(text) != size or zlib.crc32(text) != checksum:
            return None
        return number, json.loads(text)

    def close(self) -> None:
        os.close(self.fd)
