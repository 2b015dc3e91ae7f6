# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that are awkward to attach to: attach_odd_target.c.

with OddTarget("fork") as target:
    assert target.ask() == ("forked", 1)
"""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.attach import DEADLINE_S
from tests.support.programs import built

SOURCE = Path(__file__).with_name("attach_odd_target.c")


class OddTarget:
    """The running program. Leaving the `with` block kills it."""

    def __init__(self, *arguments: str, prefix: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*prefix, str(built(SOURCE)), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.pid = self.process.pid
        self.pidfd = os.pidfd_open(self.pid)
        assert self.hear() == ("ready", 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self.pidfd)

    def ask(self) -> tuple[str, int]:
        """Have it do its thing, and hear of it."""
        assert self.process.stdin
        self.process.stdin.write(b"x")
        return self.hear()

    def hear(self) -> tuple[str, int]:
        """What it says next; AssertionError if it says nothing."""
        assert self.process.stdout
        ready = select.select([self.process.stdout], [], [], DEADLINE_S)[0]
        assert ready, f"{self.process.args} hangs"
        line = self.process.stdout.readline()
        assert line, f"{self.process.args} has ended: {self.process.wait()}"
        what, value = line.split()
        return what.decode(), int(value)

    @property
    def traces(self) -> tuple[list[str], list[str]]:
        """What an attach could leave: open fds, mappings."""
        fds = sorted(str(path.readlink()) for path in Path(f"/proc/{self.pid}/fd").iterdir())
        lines = Path(f"/proc/{self.pid}/maps").read_text().splitlines()
        return fds, [" ".join(line.split()[:3]) for line in lines]
