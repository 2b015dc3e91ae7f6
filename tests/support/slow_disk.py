# SPDX-License-Identifier: GPL-2.0-or-later
"""A file whose transfers take their time: slow_disk.c.

with SlowDisk(file, delay_ms=40) as disk:
    os.open(disk.path, os.O_RDWR | os.O_DIRECT)
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.programs import built

SOURCE = Path(__file__).with_suffix(".c")


def missing() -> str:
    """Why there can be no slow disk here, or ""."""
    if os.geteuid() != 0:
        return "needs root: it mounts a file system"
    return "" if Path("/dev/fuse").exists() else "needs /dev/fuse"


class SlowDisk:
    """Leaving the `with` block ends it: end who has it open first."""

    def __init__(self, file: Path, delay_ms: int) -> None:
        self.file = file
        self._delay_ms = delay_ms

    def __enter__(self) -> Self:
        command = [str(built(SOURCE)), str(self.file), str(self._delay_ms)]
        self._server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._server.stdout
        if self._server.stdout.readline() != b"ready\n":
            self.__exit__(None, None, None)
            raise AssertionError(f"{command} does not serve")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.kill()
        self._server.communicate()

    @property
    def pid(self) -> int:
        """Of the one whose mount namespace has the slow file in place of the file."""
        return self._server.pid

    @property
    def path(self) -> Path:
        """The slow way to the file, for anybody on this host."""
        return Path(f"/proc/{self.pid}/root{self.file.resolve()}")
