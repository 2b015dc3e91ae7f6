# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a process stands still because its cgroup is frozen: `systemctl freeze`, `docker pause`, libvirt.

No thread of such a process can make a system call on our behalf before it is thawed.
"""

from __future__ import annotations

from pathlib import Path

from vmmswap.errors import BusyError
from vmmswap.linux.cgroup import groups_of, hierarchies_of


def check_not_frozen(pid: int, name: str) -> None:
    """BusyError if the process is frozen, or about to be. name: of the process, for people."""
    command = thawing_command(pid)
    if command:
        raise BusyError(
            f"{name} is frozen: none of its threads can run until its cgroup is thawed, by whoever froze"
            f" it (systemctl thaw, docker unpause) or by `{command}`. Thaw it, then try again"
        )


def thawing_command(pid: int) -> str:
    """What thaws the cgroup, the process's own or one around it, that was frozen. Empty: we see none."""
    try:
        for hierarchy in hierarchies_of("freezer"):
            if hierarchy.is_unified:
                setting, thaw = "cgroup.freeze", "echo 0 > {}/cgroup.freeze"
            else:
                setting, thaw = "freezer.self_freezing", "echo THAWED > {}/freezer.state"
            for group in groups_of(pid, hierarchy)[:-1]:  # the root cannot be frozen
                if _text(group / setting) == "1":
                    return thaw.format(group)
    except OSError:
        pass
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
