# SPDX-License-Identifier: GPL-2.0-or-later
"""May a user trace a process? The rules of the kernel's own check, for a user without capabilities.

We trace with CAP_SYS_PTRACE, so the kernel's check of us says nothing about the user who asks. It cannot be
asked in the user's name either: that needs CAP_SETUID, which no unit of ours has. Each input of the check is
in /proc, however (Linux kernel/ptrace.c, __ptrace_may_access() with PTRACE_MODE_ATTACH_REALCREDS;
security/commoncap.c; security/yama/yama_lsm.c):

    real, effective and saved uid are the user's       Uid: of status; also that of the file system here
    real, effective and saved gid are the user's       Gid: of status, likewise: a set-gid program differs
    the process is dumpable                            else its files in /proc are root's (task_dump_owner())
    it has no capability that the user lacks           CapPrm: of status
    the same user namespace                            ns/user
    Yama: the user's process is an ancestor            kernel.yama.ptrace_scope

What is stricter here: a user who has capabilities counts as one without, and PR_SET_PTRACER is not seen.

A process can change all of this by execve() of a set-uid program at any time. Held by ptrace it cannot: so
the answer counts only if it is asked again then. An execve() by another thread ends the thread that is held.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmmswap.errors import AccessDeniedError, NotSupportedError
from vmmswap.linux import process

_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_RESTRICTED = 1
_MAX_ANCESTORS = 4096


@dataclass(frozen=True, slots=True)
class User:
    """Who wants a process to be traced."""

    uid: int
    gid: int
    pid: int = 0  # of the process that asks, for Yama's rule; 0: the rule has been applied already

    @property
    def is_root(self) -> bool:
        return self.uid == 0


ROOT = User(0, 0)


def user_of(pid: int, uid: int) -> User:
    """The user whose process this is, which is known to be of this uid.

    AccessDeniedError if it runs a set-uid program by now.
    """
    status = _read_status(pid, pid)
    if set(status["Uid"].split()) != {str(uid)}:
        raise AccessDeniedError(f"process {pid} is not uid {uid}'s alone: its uids are {status['Uid']}")
    return User(uid, int(status["Gid"].split()[0]), pid)


def check_process(pid: int, user: User) -> None:
    """AccessDeniedError unless the user may trace all of the process's threads."""
    if user.is_root:
        return
    for tid in _thread_ids(pid):
        check_thread(pid, tid, user)
    if user.pid:
        _check_yama(pid, user, _YAMA)


def may_trace(pid: int, user: User) -> bool:
    """The same as an answer. NotSupportedError if the process has ended."""
    try:
        check_process(pid, user)
    except AccessDeniedError:
        return False
    return True


def check_thread(pid: int, tid: int, user: User) -> None:
    """AccessDeniedError unless the user may trace this thread, Yama's rule aside."""
    if user.is_root:
        return
    status = _read_status(pid, tid)
    for key, mine in (("Uid", user.uid), ("Gid", user.gid)):
        if set(status[key].split()) != {str(mine)}:
            ids = sorted(set(map(int, status[key].split())))
            raise _denied(pid, user, f"it is not {key.lower()} {mine}'s (its {key.lower()}s are {ids})")
    if int(status["CapPrm"], 16):
        raise _denied(pid, user, f"it has capabilities (CapPrm {status['CapPrm']})")
    if not _is_dumpable(pid, tid, user):
        raise _denied(pid, user, "it is not dumpable: it ran a program that is not for all to see (prctl(2))")


def _denied(pid: int, user: User, reason: str) -> AccessDeniedError:
    return AccessDeniedError(
        f"uid {user.uid} may not attach to process {pid}, as it may not trace it: {reason}. Attach as root"
    )


def _is_dumpable(pid: int, tid: int, user: User) -> bool:
    try:
        return Path(f"/proc/{pid}/task/{tid}/stat").stat().st_uid == user.uid
    except (FileNotFoundError, ProcessLookupError):
        raise _ended(pid) from None


def _check_yama(pid: int, user: User, setting: Path) -> None:
    try:
        scope = int(setting.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return  # a kernel without Yama
    if scope < _RESTRICTED or (scope == _RESTRICTED and _is_ancestor(user.pid, pid)):
        return
    raise _denied(pid, user, f"Yama does not let it (kernel.yama.ptrace_scope is {scope})")


def _is_ancestor(ancestor: int, pid: int) -> bool:
    for _ in range(_MAX_ANCESTORS):
        if pid in (ancestor, 0):
            return pid == ancestor
        pid = int(_read_status(pid, pid)["PPid"])
    return False


def _thread_ids(pid: int) -> list[int]:
    try:
        return process.thread_ids(pid)
    except (FileNotFoundError, ProcessLookupError):
        raise _ended(pid) from None


def _read_status(pid: int, tid: int) -> dict[str, str]:
    try:
        return process.status_of(pid, tid)
    except (FileNotFoundError, ProcessLookupError):
        raise _ended(pid) from None


def _ended(pid: int) -> NotSupportedError:
    return NotSupportedError(f"process {pid} has ended")
