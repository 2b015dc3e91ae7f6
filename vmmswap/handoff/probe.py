# SPDX-License-Identifier: GPL-2.0-or-later
"""Does a userfaultfd stop kernel-mode accesses too, and does it belong to this process?

Nothing in /proc tells a UFFD_USER_MODE_ONLY userfaultfd from another, nor whose address space it is about.
Both matter: KVM, vhost and io_uring fault in kernel mode, and with a user-mode-only uffd they would fail
with EFAULT. So we try: register one empty page, and have a child process read it with process_vm_readv, a
kernel-mode access.

    the read waits in the kernel, a fault is pending on the uffd    fit, and of this process
    EFAULT                                                          for user mode only
    the read succeeds                                               of another process (or the page was not
    empty)

The access waits where only a fatal signal reaches it. On a thread of ours a hostile VMM could keep it
waiting for ever (by registering the page again as soon as we release it), so it is a child's, and SIGKILL
ends it. Killed, the read never happens: no page of zeros is made in the memfd, and nothing of the guest has
changed.
The message itself is never read: a VMM may clear O_NONBLOCK of the shared description between a poll and a
read, and the message goes away with the child. If the VMM registers or faults on that page meanwhile, it
waits until we unregister.
"""

from __future__ import annotations

import enum
import errno
import os
import select
import signal
import time
from pathlib import Path

from vmmswap.engine import start_probe_read
from vmmswap.errors import InvalidRegionError
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.linux import userfaultfd
from vmmswap.linux.owned import OwnedFds

_POLL_MS = 2
_PATIENCE_S = 5.0


class Verdict(enum.Enum):
    KERNEL_FAULTS = "fit for kernel-mode faults, and of this process"
    USER_MODE_ONLY = "for user mode only"
    NO_FAULT = "the page could be read: not empty, or the uffd is of another process"
    UNKNOWN = "unknown"


def probe(uffd: int, pid: int, addr: int, field: str, *, read_addr: int | None = None) -> Verdict:
    """Try the uffd on the empty page at addr of process pid, and unregister it again. Blocks: call it on a
    thread.

    The uffd must be initialised. InvalidRegionError naming the field if the kernel refuses to register the
    page. read_addr: where to read instead, for a test that is known to fail and must look like any other.
    """
    go, start = os.pipe2(os.O_CLOEXEC)
    with OwnedFds((go, start)):
        child = start_probe_read(pid, addr if read_addr is None else read_addr, go)
        try:
            _register(uffd, addr, field)
        except BaseException:
            _end(child)
            raise
        try:
            os.write(start, b"g")
            return _watch(uffd, child, time.monotonic() + _PATIENCE_S)
        finally:
            _end(child)
            userfaultfd.unregister(uffd, addr, PAGE_SIZE)


def _end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _register(uffd: int, addr: int, field: str) -> None:
    try:
        userfaultfd.register_missing(uffd, addr, PAGE_SIZE)
    except OSError as error:
        reasons = {
            errno.EBUSY: "another userfaultfd is registered there",
            errno.EINVAL: "what its process maps there, if anything, cannot be served by a userfaultfd",
            errno.ENOMEM: "nothing is mapped there in the process of the userfaultfd",
            errno.ESRCH: "the process of the userfaultfd has ended or called execve",
        }
        reason = reasons.get(error.errno or 0, os.strerror(error.errno or 0))
        raise InvalidRegionError(
            f"{field}: {addr:#x} cannot be registered with the userfaultfd: {reason}"
        ) from None


def _watch(uffd: int, child: int, deadline: float) -> Verdict:
    pidfd = os.pidfd_open(child)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        while not poller.poll(_POLL_MS):
            if time.monotonic() > deadline:
                return Verdict.UNKNOWN
            if _faults_waiting(uffd) and _is_in_fault(child):
                return Verdict.KERNEL_FAULTS
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    finally:
        os.close(pidfd)
    if ended is None or ended.si_code != os.CLD_EXITED:
        return Verdict.UNKNOWN
    return {0: Verdict.NO_FAULT, errno.EFAULT: Verdict.USER_MODE_ONLY}.get(ended.si_status, Verdict.UNKNOWN)


def _faults_waiting(uffd: int) -> bool:
    lines = Path(f"/proc/self/fdinfo/{uffd}").read_text().splitlines()
    return any(line.startswith("total:") and int(line.split()[1]) > 0 for line in lines)


def _is_in_fault(pid: int) -> bool:
    """Whether the process sleeps in a userfault; where the kernel hides the function, whether it sleeps
    unkillably.
    """
    if Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "D":
        return False
    try:
        waits_in = Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        return True
    return waits_in in ("", "0", "handle_userfault")
