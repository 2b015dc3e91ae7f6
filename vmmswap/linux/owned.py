# SPDX-License-Identifier: GPL-2.0-or-later
"""File descriptors with an owner: closed on every path unless handed on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from types import TracebackType


class OwnedFds:
    """Closes its fds at the end of the `with` block, unless `release` handed them on before."""

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self._fds = list(fds)

    def __enter__(self) -> OwnedFds:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._fds)

    def __getitem__(self, idx: int) -> int:
        return self._fds[idx]

    def __iter__(self) -> Iterator[int]:
        return iter(self._fds)

    def add(self, fd: int) -> None:
        self._fds.append(fd)

    def release(self) -> tuple[int, ...]:
        """The fds, which are now the caller's to close. Nothing is left to close here."""
        fds, self._fds = tuple(self._fds), []
        return fds

    def close(self) -> None:
        """Close what is still owned. Closing again does nothing. May wait for ever: see lane."""
        for fd in self.release():
            with contextlib.suppress(OSError):  # a FUSE server's own error: it is closed all the same
                os.close(fd)
