# SPDX-License-Identifier: GPL-2.0-or-later
"""What the bus may ask of a VM's monitor: monitor/ implements it, bus/ calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vmmswap.status import Status


class VmControl(Protocol):
    """One VM, as its D-Bus object sees it. All methods raise vmmswap.errors only.

    The orders return once accepted; `status` and the subscription tell the rest.
    The last order wins: enable cancels a swap-in, disable a swap-out.
    """

    @property
    def name(self) -> str:
        """The VM's name."""

    @property
    def owner_uid(self) -> int:
        """The VMM's uid: besides root the only one who may change things on a host without polkit."""

    def status(self) -> Status:
        """The VM's status now. Never blocks on an operation."""

    async def configuration(self) -> list[tuple[str, str, str, str]]:
        """All keys of the configuration: key, value, where it stands ("default", or FILE:LINE), and the value
        that a restart would bring, "" if that is the same.
        """

    async def refresh(self) -> None:
        """Before status(): have that counted which takes a while to count, for two seconds at most."""

    async def enable(self) -> None:
        """Swap all of guest memory out, and serve faults from then on."""

    async def disable(self) -> None:
        """Swap all in and stop tracking."""

    async def trim(self) -> None:
        """Swap out again what costs no write: unchanged pages that came back, and zeros."""

    async def wake(self) -> None:
        """Bring back what earlier wake-ups touched; the VM stays Active."""

    async def flush(self) -> None:
        """Move all that is out and on RAM to disk."""

    async def start_page_fault_logging(self) -> None:
        """Log page faults from now on; no effect if already started."""

    async def stop_page_fault_logging(self) -> None:
        """Stop logging page faults; no effect if not started."""

    async def exit(self) -> None:
        """Swap all in, release the VM, end the monitor."""

    def subscribe(self, listener: Callable[[Status], None]) -> None:
        """Call listener with the new status after every change of state or operation, from the event loop."""
