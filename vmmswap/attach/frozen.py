# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a process stands still because its cgroup is frozen: `systemctl freeze`, `docker pause`, libvirt.

No thread of such a process can make a system call on our behalf before it is thawed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vmmswap.errors import BusyError

_MOUNTINFO = Path("/proc/self/mountinfo")


def check_not_frozen(pid: int, name: str) -> None:
    """BusyError if the process is frozen, or about to be. name: of the process, for people."""
    command = thawing_command(pid)
    if command:
        raise BusyError(
            f"{name} is frozen: none of its threads can run before its cgroup is thawed, by who froze it"
            f" (systemctl thaw, docker unpause) or by `{command}`. Thaw it, then try again"
        )


def thawing_command(pid: int) -> str:
    """What thaws the cgroup, the process's own or one around it, that was frozen. Empty: we see none."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        mounts = list(_mounts(_MOUNTINFO.read_text()))
    except OSError:
        return ""
    for line in lines:
        number, controllers, path = line.split(":", 2)
        for mount, is_unified in mounts:
            if is_unified and number == "0":
                setting, thaw = "cgroup.freeze", "echo 0 > {}/cgroup.freeze"
            elif not is_unified and "freezer" in controllers.split(","):
                setting, thaw = "freezer.self_freezing", "echo THAWED > {}/freezer.state"
            else:
                continue
            for group in _with_those_around(mount, path):
                if _text(group / setting) == "1":
                    return thaw.format(group)
    return ""


def _mounts(mountinfo: str) -> Iterator[tuple[Path, bool]]:
    """Where the freezer is: (mount point, whether of cgroup v2)."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        point = Path(before.split(" ")[4].replace("\\040", " "))
        if kind == "cgroup2":
            yield point, True
        elif kind == "cgroup" and "freezer" in options.split(","):
            yield point, False


def _with_those_around(mount: Path, path: str) -> Iterator[Path]:
    group = mount / path.lstrip("/")
    while group != mount and mount in group.parents:
        yield group
        group = group.parent


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
