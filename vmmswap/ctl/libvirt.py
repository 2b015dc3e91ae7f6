# SPDX-License-Identifier: GPL-2.0-or-later
"""The process of a libvirt domain on this machine, by the file in which libvirt notes it.

libvirt is not asked: who may attach may not be allowed to, and in a hook that would wait for ever.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from vmmswap.ctl.failure import CtlError, ExitStatus

_SYSTEM = Path("/run/libvirt/qemu")


def pid_of_domain(domain: str, directories: tuple[Path, ...] | None = None) -> int:
    """CtlError if it does not run. directories: where libvirt notes processes; by default the system's, then
    that of the caller's session.
    """
    if "/" in domain or domain in ("", ".", ".."):
        raise CtlError(ExitStatus.BAD_USAGE, f"{domain!r} is no name of a libvirt domain")
    for directory in _directories() if directories is None else directories:
        try:
            pid = int((directory / f"{domain}.pid").read_text())
        except (OSError, ValueError):
            continue
        if _is_its_qemu(pid, domain):
            return pid
    raise CtlError(
        ExitStatus.FAILED,
        f"no libvirt domain {domain} runs here, or its process may not be seen: `virsh list` shows those that"
        " do; give the QEMU's PID otherwise",
    )


def _directories() -> tuple[Path, ...]:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return (_SYSTEM, *([Path(runtime) / "libvirt/qemu/run"] if runtime else []))


def _is_its_qemu(pid: int, domain: str) -> bool:
    """A file may be left of a domain that has ended, and its number another process's."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    names = [after for word, after in itertools.pairwise(words) if word == "-name"]
    return any(domain in (name, *_guests_of(name)) for name in names)


def _guests_of(name: str) -> list[str]:
    """QEMU's `guest=NAME,debug-threads=on`, where a comma in the name is doubled."""
    first = name.replace(",,", "\0").split(",")[0].replace("\0", ",")
    return [first.removeprefix("guest=")]
