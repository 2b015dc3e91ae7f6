# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs to attach to: attach_target.c, whose threads notice if they are disturbed.

with Target("nanosleep,read") as target:
    ...
    target.run_on(3)          # each thread does three more rounds
    assert target.wrong == 0
"""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.patience import PATIENCE
from tests.support.programs import built

SOURCE = Path(__file__).with_name("attach_target.c")
DEADLINE_S = 60.0 * PATIENCE
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs")

_HEAD = struct.Struct("QQQQQ")
_COUNTERS = struct.Struct("QQQ")
COUNTERS_AT = _HEAD.size  # bytes from the start of the shared page


@dataclass(frozen=True, slots=True)
class Counters:
    done: int
    wrong: int
    interrupted: int


class Target:
    """The running program. Leaving the `with` block kills it."""

    def __init__(
        self,
        kinds: str,
        *options: str,
        size_mib: int = 16,
        prefix: tuple[str, ...] = (),
        flags: tuple[str, ...] = (),
    ) -> None:
        self._kinds = kinds.split(",")
        stats = os.memfd_create("stats")
        os.ftruncate(stats, mmap.PAGESIZE)
        self._stats = mmap.mmap(stats, mmap.PAGESIZE)
        self.process = subprocess.Popen(
            [*prefix, str(built(SOURCE, *flags)), str(stats), str(size_mib), kinds, *options],
            pass_fds=[stats],
            stdin=subprocess.DEVNULL,
        )
        os.close(stats)
        self.pid = self.process.pid
        self.pidfd = os.pidfd_open(self.pid)
        try:
            self._until(lambda: _HEAD.unpack_from(self._stats)[0] > 0)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.pidfd)
        self._stats.close()

    @property
    def addr(self) -> int:
        return _HEAD.unpack_from(self._stats)[1]

    @property
    def working_addr(self) -> int:
        """Where the memory is that it works with; option "working"."""
        return _HEAD.unpack_from(self._stats)[4]

    @property
    def signals(self) -> int:
        """SIGRTMIN that were handled."""
        return _HEAD.unpack_from(self._stats)[3]

    @property
    def counters(self) -> list[Counters]:
        """One for each kind of thread."""
        return [
            Counters(*_COUNTERS.unpack_from(self._stats, _HEAD.size + idx * _COUNTERS.size))
            for idx in range(len(self._kinds))
        ]

    @property
    def wrong(self) -> int:
        return sum(item.wrong for item in self.counters)

    def run_on(self, rounds: int = 3) -> None:
        """Until each thread has done so many rounds more; AssertionError if one stands still."""
        before = self.counters
        self._until(
            lambda: all(
                now.done >= then.done + rounds for now, then in zip(self.counters, before, strict=True)
            )
        )

    def _until(self, condition) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert self.process.poll() is None, f"the target has ended: {self.process.returncode}"
            assert time.monotonic() < end, f"the target stands still: {self.counters}"
            time.sleep(0.002)

    @property
    def fds(self) -> list[str]:
        """What each open fd is of."""
        return sorted(str(path.readlink()) for path in Path(f"/proc/{self.pid}/fd").iterdir())

    @property
    def maps(self) -> list[str]:
        """Addresses and permissions of all mappings."""
        lines = Path(f"/proc/{self.pid}/maps").read_text().splitlines()
        return [" ".join(line.split()[:3]) for line in lines]

    def states(self) -> set[str]:
        """The letters of all threads: a stop reaches one after the other."""
        return {
            (task / "stat").read_text().rpartition(")")[2].split()[0]
            for task in Path(f"/proc/{self.pid}/task").iterdir()
        }

    def status(self, key: str) -> str:
        """A field of /proc/PID/status."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{key}:"))
