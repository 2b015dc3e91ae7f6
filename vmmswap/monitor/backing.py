# SPDX-License-Identifier: GPL-2.0-or-later
"""What backs a VM's memory. Everything that differs between the kinds is here; no other file names a kind.

A memfd is shared memory: others may map it, and it may outlive the VMM. A snapshot's memory is private to its
VMM, which filled it from a file and registered it itself. A thread of the VMM moves other private memory, as
the mailbox asks. The engine makes the same distinction:
engine/src/vm/backing.h.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vmmswap.engine import Engine, Range
from vmmswap.errors import StorageFailedError
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.monitor import snapshot
from vmmswap.monitor.keep import fdstore
from vmmswap.monitor.keep.manifest import Manifest

if TYPE_CHECKING:
    from vmmswap.monitor.new_vm import NewVm


class Backing(ABC):
    """vmm_registers: the VMM, and nobody else, registers its memory before it hands it over; if refused, it
    would hang. others_may_map: other processes than the VMM can map the memory, so we look for them, and they
    may have it when the VMM has ended. source_is_store: the file that the VMM gives is the engine's store.
    origin: for Status; "" if the kind does not determine it.
    """

    vmm_registers: bool
    vmm_moves: bool = False  # private memory: what is asked of the VMM must outlive us, too
    others_may_map: bool
    source_is_store: bool
    origin: str

    @abstractmethod
    def as_recorded(self, manifest: Manifest) -> Manifest:
        """Return the record of a new VM, with what a successor must know of the kind."""

    @abstractmethod
    def add_region(
        self, engine: Engine, memfds: Mapping[int, int], number: int, offset_bytes: int, size_bytes: int, /
    ) -> int:
        """Add memory to the engine and return the index of its first page. number: the number of its memfd,
        if it has one. StorageFailedError if that memfd is missing.
        """

    def add_gap(self, engine: Engine, pages: int) -> None:
        """Page numbers that nothing has any more."""
        fd = os.memfd_create("vmmswap-gap", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, pages * PAGE_SIZE)
            engine.remove_region(engine.add_region(fd, 0, pages * PAGE_SIZE))
        finally:
            os.close(fd)

    @abstractmethod
    def undo_add_region(self, engine: Engine, page_idx: int) -> None:
        """Undo what add_region() did since the running job began."""

    @abstractmethod
    def check_may_go_out(self) -> None:
        """NotSupportedError if nothing of it can be swapped out."""

    @abstractmethod
    def resident(self, pid: int, ranges: Sequence[Range], /) -> snapshot.Resident | None:
        """Return what counts the VMM's resident pages, if the engine cannot."""

    @abstractmethod
    def file_of(self, number: int, /) -> str:
        """For people: the file that a region's offset refers to. number: as in add_region()."""


class Memfd(Backing):
    vmm_registers = False
    others_may_map = True
    source_is_store = False
    origin = ""

    def as_recorded(self, manifest: Manifest) -> Manifest:
        return manifest

    def add_region(
        self, engine: Engine, memfds: Mapping[int, int], number: int, offset_bytes: int, size_bytes: int, /
    ) -> int:
        if number not in memfds:
            raise StorageFailedError(f"the fd store has no {fdstore.memfd_name(number)}")
        return engine.add_region(memfds[number], offset_bytes, size_bytes)

    def undo_add_region(self, engine: Engine, page_idx: int) -> None:
        engine.undo_add_region(page_idx)

    def check_may_go_out(self) -> None:
        pass

    def resident(self, _pid: int, _ranges: Sequence[Range], /) -> snapshot.Resident | None:
        return None

    def file_of(self, number: int, /) -> str:
        return f"memfd {number}"


class Snapshot(Backing):
    vmm_registers = True
    others_may_map = False
    source_is_store = True
    origin = "snapshot"

    def as_recorded(self, manifest: Manifest) -> Manifest:
        return replace(
            manifest,
            snapshot=True,
            wants_out=True,  # until Disable: pages that the guest has not had stay out
        )

    def add_region(
        self, engine: Engine, _memfds: Mapping[int, int], _number: int, offset_bytes: int, size_bytes: int, /
    ) -> int:
        return engine.add_snapshot_region(offset_bytes, size_bytes)

    def undo_add_region(self, engine: Engine, page_idx: int) -> None:
        """Only registration adds memory, and it gives up the engine if it fails."""

    def check_may_go_out(self) -> None:
        snapshot.refuse_to_go_out()

    def resident(self, pid: int, ranges: Sequence[Range], /) -> snapshot.Resident | None:
        return snapshot.Resident(pid, ranges)

    def file_of(self, _number: int, /) -> str:
        return "the snapshot's file"


class Private(Backing):
    vmm_registers = False
    vmm_moves = True
    others_may_map = False
    source_is_store = False
    origin = ""

    def as_recorded(self, manifest: Manifest) -> Manifest:
        return replace(manifest, private=True)

    def add_region(
        self, engine: Engine, _memfds: Mapping[int, int], _number: int, offset_bytes: int, size_bytes: int, /
    ) -> int:
        return engine.add_private_region(offset_bytes, size_bytes)

    def add_gap(self, engine: Engine, pages: int) -> None:
        engine.remove_region(engine.add_private_region(PAGE_SIZE, pages * PAGE_SIZE))

    def undo_add_region(self, engine: Engine, page_idx: int) -> None:
        engine.undo_add_region(page_idx)

    def check_may_go_out(self) -> None:
        pass

    def resident(self, _pid: int, _ranges: Sequence[Range], /) -> snapshot.Resident | None:
        return None

    def file_of(self, _number: int, /) -> str:
        return "the VMM's addresses"


_MEMFD = Memfd()
_SNAPSHOT = Snapshot()
_PRIVATE = Private()


def of_new(new: NewVm) -> Backing:
    if new.mover is not None:
        return _PRIVATE
    return _MEMFD if new.snapshot is None else _SNAPSHOT


def of_record(manifest: Manifest) -> Backing:
    if manifest.private:
        return _PRIVATE
    return _SNAPSHOT if manifest.snapshot else _MEMFD
