# SPDX-License-Identifier: GPL-2.0-or-later
"""The page that the planted thread shares with its monitor (engine/src/linux/mailbox.h)."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from typing import Any

from vmmswap.engine.native import ffi, lib
from vmmswap.errors import BusyError

_FUTEX_WAKE = 1
_SYS_FUTEX = 202

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Planting:
    """What is in the VMM; mailbox_fd and uffd are its numbers."""

    area_addr: int
    area_bytes: int
    mailbox_addr: int
    mailbox_fd: int
    uffd: int


class Mailbox:
    """Our mapping of it, for as long as the `with` block."""

    def __init__(self, fd: int) -> None:
        self._page = mmap.mmap(fd, lib.VMMSWAP_MAILBOX_BYTES)
        self._view = ffi.from_buffer(self._page, require_writable=True)
        self.box: Any = ffi.cast("struct vmmswap_mailbox *", self._view)
        self._record: Any = ffi.cast("struct vmmswap_planting *", self._view + lib.VMMSWAP_PLANTING_OFFSET)

    def __enter__(self) -> Mailbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.box = self._record = None
        ffi.release(self._view)
        self._page.close()

    @property
    def planting(self) -> Planting | None:
        """None: the VMM runs the thread itself."""
        record = self._record
        if not record.area_addr:
            return None
        return Planting(
            record.area_addr, record.area_bytes, record.mailbox_addr, record.mailbox_fd, record.uffd
        )

    def record(self, planting: Planting) -> None:
        for name in Planting.__slots__:
            setattr(self._record, name, getattr(planting, name))

    def forget(self) -> None:
        """What was recorded is about to be unmapped, and what the VMM maps there next is its own."""
        self._record.area_addr = 0

    def ask_to_leave(self) -> None:
        """BusyError if anything else is asked."""
        if self.box.state == lib.VMMSWAP_MAILBOX_ASKED and self.box.call == lib.VMMSWAP_MAILBOX_LEAVE:
            return
        if self.box.state != lib.VMMSWAP_MAILBOX_IDLE:
            raise BusyError("the thread that moves pages is not done with what it was asked")
        self.box.call = lib.VMMSWAP_MAILBOX_LEAVE
        self.box.state = lib.VMMSWAP_MAILBOX_ASKED  # last: the thread looks here
        addr = int(ffi.cast("uintptr_t", ffi.addressof(self.box, "state")))
        _libc.syscall(_SYS_FUTEX, ctypes.c_void_p(addr), _FUTEX_WAKE, 1, None, None, 0)
