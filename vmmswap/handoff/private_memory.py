# SPDX-License-Identifier: GPL-2.0-or-later
"""For VMMs in Python whose guest memory is private: the thread that moves its pages.

    mover = Mover([(addr, size)])
    client.register([private_region(addr, size)], [], uffd, dummy_page=dummy.addr, mailbox=mover.mailbox)

The thread is C (engine/planted/mover_thread.c) and never waits for Python: whoever touches a page while it is
being moved may hold Python's lock.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import threading
import time
from collections.abc import Sequence

from vmmswap.engine.native import ffi, lib
from vmmswap.handoff.region import private_region
from vmmswap.linux import userfaultfd

__all__ = ["Mover", "private_region"]

_MADV_DONTFORK = 10
_MAP_NORESERVE = 0x4000
_libc = ctypes.CDLL(None, use_errno=True)


class Mover:
    """Runs until the process ends: nobody else can move its memory."""

    def __init__(self, regions: Sequence[tuple[int, int]]) -> None:
        """regions: (address, bytes) of private, anonymous memory, which no child inherits from here on.
        OSError where the kernel refuses.
        """
        self.mailbox = os.memfd_create("vmmswap mailbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.mailbox, lib.VMMSWAP_MAILBOX_BYTES)
        fcntl.fcntl(self.mailbox, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self._page = mmap.mmap(self.mailbox, lib.VMMSWAP_MAILBOX_BYTES)
        self._box = ffi.from_buffer("struct vmmswap_mailbox *", self._page)
        self._mover = ffi.new("struct vmmswap_mover *")
        self._mover.mailbox = self._box
        self._mover.scratch_addr = self._box.scratch_addr = self._map_scratch()
        self._mover.uffd = userfaultfd.open_user_mode_only()
        userfaultfd.api(self._mover.uffd, userfaultfd.Feature(0))
        userfaultfd.register_missing(self._mover.uffd, self._mover.scratch_addr, lib.VMMSWAP_SCRATCH_BYTES)
        for addr, size_bytes in regions:
            self.add(addr, size_bytes)
        self._box.magic = lib.VMMSWAP_MAILBOX_MAGIC
        self._thread = threading.Thread(target=self._run, name="vmmswap", daemon=True)
        self._thread.start()
        while not self._box.tid:
            time.sleep(0.001)

    def add(self, addr: int, size_bytes: int) -> None:
        """Further memory; then hand it over (`add_region`)."""
        _keep_from_children(addr, size_bytes)
        if self._mover.ranges_n == lib.VMMSWAP_MOVER_RANGES_MAX:
            raise OSError(f"more than {lib.VMMSWAP_MOVER_RANGES_MAX} regions")
        item = self._mover.ranges[self._mover.ranges_n]
        item.addr, item.size_bytes = addr, size_bytes
        self._mover.ranges_n += 1  # last: the thread reads it meanwhile

    def _map_scratch(self) -> int:
        """Aligned as huge pages are; what is mapped around it stays unused."""
        window, size = int(lib.VMMSWAP_WINDOW_BYTES), int(lib.VMMSWAP_SCRATCH_BYTES)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._scratch = mmap.mmap(-1, size + window, flags=flags)
        view = ctypes.c_char.from_buffer(self._scratch)
        addr = (ctypes.addressof(view) + window - 1) // window * window
        del view
        _keep_from_children(addr, size)
        return addr

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        lib.vmmswap_mover_run(self._mover)  # without Python's lock


def _keep_from_children(addr: int, size_bytes: int) -> None:
    if _libc.madvise(ctypes.c_void_p(addr), ctypes.c_size_t(size_bytes), _MADV_DONTFORK) != 0:
        raise OSError(ctypes.get_errno(), f"madvise(MADV_DONTFORK) of {addr:#x}")
