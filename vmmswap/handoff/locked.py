# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a process has locked its guest memory into RAM: mlock(), mlockall(), MAP_LOCKED.

The kernel would let it go all the same: it punches locked pages like any others, and the next access faults
them in. But whoever locks memory has asked that no access ever waits, and a swap-out would break that without
a word. So locked guest memory is not taken: not at the hand-off, not by attach, not at Enable.
"""

from __future__ import annotations

from collections.abc import Sequence

from vmmswap.errors import NotSupportedError
from vmmswap.handoff.maps import flags_of_mappings
from vmmswap.linux.maps import LOCKED
from vmmswap.linux.process import status_of

_ADVICE = (
    "vmmswap does not swap out what a VMM wants to have on RAM. Start the VMM without that (QEMU:"
    " -overcommit mem-lock=off; libvirt: no <locked/> in <memoryBacking>), or have it call munlock()"
)


def check_not_locked(pid: int, spans: Sequence[tuple[int, int]]) -> None:
    """NotSupportedError if any of these (start, end) addresses is locked. Waits for the process's mmap lock;
    walks its page tables only where it has locked anything.
    """
    if not _locks_memory(pid):
        return
    for mapping, flags in flags_of_mappings(pid):
        if LOCKED in flags and any(mapping.overlaps(start, end) for start, end in spans):
            raise locked_error(pid, mapping.start)


def locked_error(pid: int, addr: int) -> NotSupportedError:
    return NotSupportedError(
        f"process {pid} has locked guest memory into RAM at {addr:#x} (mlock, mlockall): {_ADVICE}"
    )


def _locks_memory(pid: int) -> bool:
    """VmLck counts all locked mappings, and VFIO's pins. True if unknown: then the mappings tell."""
    try:
        locked = status_of(pid).get("VmLck", "0").split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True
    return locked != "0"
