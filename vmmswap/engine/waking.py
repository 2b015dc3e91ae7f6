# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's calls for wake-ups."""

from __future__ import annotations

from typing import Any

from vmmswap.engine.native import checked, lib


class WakeCalls:
    """A part of Engine."""

    @property
    def _engine(self) -> Any:  # noqa: ANN401 - cffi's objects have no static types
        raise NotImplementedError

    def wake(self, *, is_ordered: bool) -> None:
        """Bring back what earlier wake-ups touched; ReplayDone follows. is_ordered: somebody knows that the
        guest wakes up. BusyError while a job runs, or while the last replay is just ending.
        """
        checked(lib.engine_wake, self._engine, is_ordered)

    def cancel_wake(self) -> None:
        """End the replay within a few pages: ReplayDone(cancelled=True) follows."""
        lib.engine_cancel_wake(self._engine)

    def set_wake_budget(self, pages: int) -> None:
        """How many pages a replay may bring back from now on; it waits for more when they are used up."""
        lib.engine_set_wake_budget(self._engine, pages)

    def settle_wake(self) -> bool:
        """The guest touches little any more: the wake-up is over. False: it has touched hardly anything, and
        it was none.
        """
        return bool(lib.engine_settle_wake(self._engine))

    @property
    def was_replaying(self) -> bool:
        """True if a predecessor was killed while a replay ran."""
        return bool(lib.engine_was_replaying(self._engine))

    @property
    def wake_is_ordered(self) -> bool:
        """True if wake() was ordered since the last swap-out, of a predecessor too."""
        return bool(lib.engine_wake_is_ordered(self._engine))

    @property
    def wake_fd(self) -> int:
        """The record of wake-ups, the engine's own: dup it to keep it."""
        return int(lib.engine_wake_fd(self._engine))
