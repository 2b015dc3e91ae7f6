# SPDX-License-Identifier: GPL-2.0-or-later
"""Forbids huge pages for guest memory in a VMM, by a call that the VMM makes itself on our behalf.

For kernels on which a huge page would fill what is swapped out (monitor/mappers/collapse.py). It stays so
after the VM is detached: the kernel has no call that takes the advice back and gives no other.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from vmmswap.attach import hold
from vmmswap.attach import target as target_module
from vmmswap.attach.remote_call import CallRefusedError, HeldThread
from vmmswap.errors import NotSupportedError

_MADV_NOHUGEPAGE = 15


def forbid_huge_pages(pidfd: int, spans: Sequence[tuple[int, int]], *, force: bool = False) -> None:
    """For these mappings: (start, end) addresses. Blocks. VmmswapError if it cannot be done."""

    def work(thread: HeldThread) -> bool:
        for start, end in spans:
            try:
                thread.call("madvise", start, end - start, _MADV_NOHUGEPAGE)
            except OSError as error:
                if error.errno != errno.ENOMEM:  # it has unmapped a part
                    raise NotSupportedError(str(error.strerror or error)) from None
            except CallRefusedError as refusal:
                raise NotSupportedError(str(refusal)) from None
        return True

    hold.run(target_module.look_again(pidfd), work, force=force)
