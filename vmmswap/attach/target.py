# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that is to be attached to: what it is, and why it cannot be attached to, if so."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from vmmswap.attach.frozen import check_not_frozen
from vmmswap.errors import AccessDeniedError, NotSupportedError, VmmswapError
from vmmswap.handoff import fds
from vmmswap.linux import process
from vmmswap.linux.access import ROOT, User
from vmmswap.linux.process import is_alive

_ELF_CLASS_64 = 2
_CAP_SYS_PTRACE = 19


@dataclass(frozen=True, slots=True)
class Target:
    """A living process. The pidfd is the caller's."""

    pid: int
    pidfd: int
    name: str
    uid: int
    may_make_uffd: bool  # has CAP_SYS_PTRACE, so that userfaultfd(2) may be allowed to it
    fd_limit: int  # all its fd numbers are below
    user: User = ROOT  # who wants it to be attached to

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name})"


def look_at(pidfd: int, user: User = ROOT) -> Target:
    """What process a pidfd is of. NotSupportedError if it cannot be attached to, with the reason."""
    if not is_alive(pidfd):
        raise NotSupportedError("the process has ended, or is a zombie that its parent has not reaped")
    pid = fds.pid_of(pidfd, "pid")
    status = _read_status(pid, pid)
    target = replace(_target_of(pid, pidfd, status), user=user)
    _check(target, status)
    if not is_alive(pidfd):
        raise NotSupportedError(f"{target} has ended")
    return target


def look_again(pidfd: int) -> Target:
    """A process that was attached to. Whether it could be once more does not matter."""
    pid = fds.pid_of(pidfd, "pid")
    return _target_of(pid, pidfd, _read_status(pid, pid))


def _target_of(pid: int, pidfd: int, status: dict[str, str]) -> Target:
    return Target(
        pid=pid,
        pidfd=pidfd,
        name=status.get("Name", "?"),
        uid=int(status.get("Uid", "0").split()[0]),
        may_make_uffd=bool(int(status.get("CapEff", "0"), 16) >> _CAP_SYS_PTRACE & 1),
        fd_limit=int(status.get("FDSize", "0")),
    )


def open_target(pid: int) -> int:
    """A pidfd. NotSupportedError if there is no such process."""
    try:
        return os.pidfd_open(pid)
    except (OSError, OverflowError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NotSupportedError(
            f"cannot attach to pid {pid}: {reason}: give the VMM's process id, as `pidof` prints it"
        ) from None


def is_ending(pidfd: int) -> bool:
    """True if a process that had memory has none left, or has ended: that is why a request to it failed."""
    try:
        pid = fds.pid_of(pidfd, "pid")
        return "VmSize" not in _read_status(pid, pid)
    except VmmswapError:
        return True


def _read_status(pid: int, tid: int) -> dict[str, str]:
    try:
        return process.status_of(pid, tid)
    except (FileNotFoundError, ProcessLookupError):
        raise NotSupportedError(f"process {pid} has ended") from None


def _check(target: Target, status: dict[str, str]) -> None:
    if target.pid == os.getpid():
        raise NotSupportedError(f"{target} is this monitor itself")
    if status.get("State", "")[:1] in ("Z", "X"):
        raise NotSupportedError(
            f"{target} runs on without its first thread, which has ended: attach cannot take over such a"
            " process"
        )
    if "VmSize" not in status:
        raise NotSupportedError(f"{target} is a kernel thread: it has no memory of its own")
    _check_namespace(target)
    check_not_frozen(target.pid, str(target))
    _check_tracers(target)
    _check_64_bit(target)
    if "shstk" in status.get("x86_Thread_features", ""):
        raise NotSupportedError(
            f"{target} runs with a shadow stack, which forbids system calls on its behalf: start it with"
            " GLIBC_TUNABLES=glibc.cpu.x86_shstk=off"
        )


def _check_namespace(target: Target) -> None:
    try:
        theirs = Path(f"/proc/{target.pid}/ns/user").stat()
    except PermissionError:
        raise AccessDeniedError(
            f"{target} may not be inspected: run the monitor as root or with CAP_SYS_PTRACE"
        ) from None
    except (FileNotFoundError, ProcessLookupError):
        raise NotSupportedError(f"{target} has ended") from None
    ours = Path("/proc/self/ns/user").stat()
    if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
        raise NotSupportedError(
            f"{target} is in another user namespace, where the monitor has no rights: run a monitor in there"
        )


def _check_tracers(target: Target) -> None:
    for tid in thread_ids(target.pid):
        try:
            tracer = int(_read_status(target.pid, tid).get("TracerPid", "0"))
        except NotSupportedError:
            continue  # this thread has ended
        if tracer:
            raise NotSupportedError(
                f"{target} is traced already, by process {tracer} ({_name_of(tracer)}): end that debugger,"
                f" then"
                " try again"
            )


def _check_64_bit(target: Target) -> None:
    try:
        with Path(f"/proc/{target.pid}/exe").open("rb") as program:
            header = program.read(5)
    except OSError:
        return  # may not be read; its registers will tell
    if header[:4] == b"\x7fELF" and header[4] != _ELF_CLASS_64:
        raise NotSupportedError(f"{target} is a 32-bit program: only 64-bit VMMs can be attached to")


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "gone"


def thread_ids(pid: int) -> list[int]:
    """All threads, the leader first. Empty if the process has ended."""
    try:
        return sorted(process.thread_ids(pid), key=lambda tid: tid != pid)
    except (FileNotFoundError, ProcessLookupError):
        return []
