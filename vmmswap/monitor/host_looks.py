# SPDX-License-Identifier: GPL-2.0-or-later
"""Who has one VM's memory, by looks that all monitors of the host share.

A look at all processes finds who has the memory of any VM as well as that of one, and there is a monitor for
each VM. So one look, by whoever finds the last one too old, does for all (engine/src/linux/shared_look.h).
Without a directory that they share, or where memory is not in memfds, each looks by itself. All of this is
for a thread.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

from vmmswap.engine import (
    Holder,
    MapperWatch,
    SharedLook,
    mappers_of,
    shared_holders,
    shared_mappers,
)
from vmmswap.monitor.host_directory import shared_directory
from vmmswap.monitor.mappers import coverage

_log = logging.getLogger("vmmswap.looks")


class HostLooks:
    """Of one watch of a VM."""

    def __init__(self) -> None:
        self._directory = shared_directory()
        self._mappers = MapperWatch()
        self._told = ""

    @property
    def are_shared(self) -> bool:
        """False: there is no directory, and each look is one at all processes."""
        return self._directory is not None

    def mapped(self, question: coverage.Question, max_age_s: float) -> coverage.Picture:
        """As coverage.look(), by a look that began at most max_age_s ago. What those who mapped the memory
        then map now is looked at now. `unreadable` may lack processes.
        """
        found = self._look(shared_mappers, question, max_age_s)
        if found is None:
            return coverage.look(question, self._mappers)
        return coverage.look_at(question, found.mappers)

    def holders(self, question: coverage.Question, manager: int, max_age_s: float) -> list[Holder]:
        """As coverage.other_holders(): those that had the memory open then and have it open now. Waits for no
        process.
        """
        found = self._look(shared_holders, question, max_age_s)
        return coverage.other_holders(question, manager, None if found is None else found.holders)

    def sign(self, memfds: Sequence[int], max_age_s: float) -> object | None:
        """Something that is equal for as long as holders() and mapped() find the same. None: it cannot be
        told.
        """
        question = coverage.Question((), tuple(memfds), ())
        holders = self._look(shared_holders, question, max_age_s)
        mapped = None if holders is None else self._look(shared_mappers, question, max_age_s)
        if holders is None or mapped is None:
            return None
        return holders.holders, mappers_of(memfds, mapped.mappers)

    def _look(
        self,
        look: Callable[[int, Sequence[int], float], SharedLook | None],
        question: coverage.Question,
        max_age_s: float,
    ) -> SharedLook | None:
        if self._directory is None:
            return None
        try:
            directory = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self._tell(str(error.strerror))
            return None
        try:
            found = look(directory, question.memfds, max_age_s)
        finally:
            os.close(directory)
        if found is not None:
            self._tell(found.unshared)
        return found

    def _tell(self, reason: str) -> None:
        if reason and reason != self._told:
            _log.warning(
                "each monitor looks through all processes by itself: %s: %s", self._directory, reason
            )
        self._told = reason
