# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory in a test's own process, mapped as a VMM must map it on any kernel."""

import contextlib
import mmap


def map_guest_memory(memfd: int, size_bytes: int) -> mmap.mmap:
    """Without huge pages: docs/kernels.md says why."""
    memory = mmap.mmap(memfd, size_bytes)
    with contextlib.suppress(OSError):  # a kernel that has none
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory
