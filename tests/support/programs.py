# SPDX-License-Identifier: GPL-2.0-or-later
"""C programs that tests run: built on first use, into build/."""

from __future__ import annotations

import fcntl
import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def built(source: Path, *flags: str) -> Path:
    """The program of one C file. Several test runs may want it at once."""
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    program = build / "-".join([source.stem.replace("_", "-"), *(flag.strip("-") for flag in flags)])
    with (build / f".{source.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            command = [
                "gcc",
                "-D_GNU_SOURCE",
                "-O1",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-pthread",
                "-Wl,-z,now",
                *flags,
            ]
            subprocess.run([*command, "-o", str(program), str(source)], check=True)
    return program
