# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs every verb of the installed vmmswapctl, and the other programs, with all out of reach that can be.

Prints each run that answers with a traceback, hangs, or ends with a status that is not documented.
In one process, forked for each run, because a start of Python takes longer than all that a verb does.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import signal
import sys
import tempfile
from collections.abc import Callable

sys.path.insert(0, "/usr/lib/vmmswap")
from vmmswap.ctl import main as ctl
from vmmswap.host import main as host
from vmmswap.monitor import main as monitor

USER = pwd.getpwuid(os.geteuid()).pw_name
MINE = f"mine-{USER}"
PATIENCE_S = 120.0
ENDLESS_S = 1.0  # then whoever runs on is interrupted, as by Ctrl-C
# -2: interrupted when all was done.
STATUSES = {0, 1, 2, 3, 4, 5, 130, 141, -signal.SIGINT}

VERBS = (
    "list",
    "list --columns name,pid --sort name --reverse --no-legend",
    "list --json",
    "status",
    "status web",
    "status web nobody --json",
    "status ../x",
    "wait web Failed --timeout 0.1",
    "monitor web",
    "monitor --json",
    "enable web",
    "enable web --no-wait",
    "enable nobody",
    "trim web",
    "wake web",
    "flush web",
    "disable web --json",
    "exit nobody",
    "detach nobody",
    f"prepare {MINE}",
    "prepare ../x",
    f"unprepare {MINE}",
    "attach web 1",
    f"attach {MINE} {os.getpid()}",
    f"attach {MINE} 4194304",
    "attach web x",
    f"attach {MINE} 1 --qmp /nonexistent --force --region 0-1000",
    "log start web",
    "log stop web",
    "trace export web",
    "trace stats web --from file",
    "trace stats web --from journal --json",
    "trace export web --log-dir /root",
    "demo --swap-dir /nonexistent",
    "demo --swap-dir /proc",
    "demo --swap-dir /etc/passwd",
    "--help",
    "status --help",
    "--version",
    "",
    "nonsense",
)
SOME = (
    *("list", "status web", "monitor web", "enable web", f"prepare {MINE}", f"attach {MINE} 1"),
    *("trace export web", "demo --swap-dir /proc", "--help", "--version", "nonsense"),
)
FEW = 4  # of the others
OTHERS = (
    (monitor.main, "--help"),
    (host.main, "--help"),
    (monitor.main, "other --attach 4194304 --swap-dir /var/tmp"),
    (host.main, "--bus nonsense"),
    (monitor.main, "web"),
    (monitor.main, "../x"),
    (monitor.main, ""),
    (monitor.main, "other --listen /nonexistent/x --swap-dir /nonexistent"),
    (monitor.main, "other --listen /etc/passwd --swap-dir /var/tmp"),
    (monitor.main, "other --attach 1 --swap-dir /root"),
    (monitor.main, "other --config /root --attach 1"),
    (monitor.main, "other --config /nonexistent --attach 1"),
    (monitor.main, "other --log-dir /proc --attach 1"),
    (host.main, ""),
    (host.main, "--idle-exit x"),
)


def no_directory() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)


def closed(number: int) -> None:
    """As the interpreter starts with a standard stream that is closed."""
    os.close(number)
    setattr(sys, ("stdin", "stdout", "stderr")[number], None)


def full_output() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def nobody_reads() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def bus(address: str) -> Callable[[], None]:
    return lambda: os.environ.update(DBUS_SYSTEM_BUS_ADDRESS=address)


CONDITIONS = {
    "plain": lambda: None,
    "no bus": bus("unix:path=/nonexistent"),
    "no address": bus("nonsense"),
    "a bus that may not be used": bus("unix:path=/root/bus"),
    "a file for a bus": bus("unix:path=/etc/passwd"),
    "no directory": no_directory,
    "no input": lambda: closed(0),
    "no output": lambda: closed(1),
    "no errors": lambda: closed(2),
    "full output": full_output,
    "nobody reads": nobody_reads,
}


def child(main: Callable[[list[str]], object], words: list[str], condition: str, out: int, err: int) -> None:
    """Never returns: ends as the launcher's interpreter does."""
    os.setpgid(0, 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    CONDITIONS[condition]()
    sys.exit(main(words))  # type: ignore[arg-type]


def run(main: Callable[[list[str]], object], line: str, condition: str) -> bool:
    """True in the child, which has to end then."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            child(main, line.split(), condition, out.fileno(), err.fileno())
        pidfd = os.pidfd_open(pid)
        if not select.select([pidfd], [], [], ENDLESS_S)[0]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGINT)
        hangs = not select.select([pidfd], [], [], PATIENCE_S)[0]
        if hangs:
            os.killpg(pid, signal.SIGKILL)
        os.close(pidfd)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        told = {stream: read(stream.fileno()) for stream in (out, err)}
    bad = any(
        sign in text for text in told.values() for sign in ("Traceback", "Exception ignored", "a bug of")
    )
    if hangs or bad or (main is ctl.main and status not in STATUSES):
        print(f"== {USER}: {main.__module__} {line} with {condition}: {status}{' hangs' * hangs}")
        print(*told.values(), sep="\n")


def read(number: int) -> str:
    os.lseek(number, 0, os.SEEK_SET)
    return os.read(number, 1 << 20).decode(errors="replace")


def verbs_with(condition: str) -> tuple[str, ...]:
    return VERBS if condition == "plain" else SOME


# All of it as an ordinary user, who may do the least.
for each in CONDITIONS if USER == "nobody" else ("plain", "no bus", "no output"):
    for arguments in verbs_with(each):
        run(ctl.main, arguments, each)
    for program, arguments in OTHERS[: None if each == "plain" else FEW]:
        run(program, arguments, each)
