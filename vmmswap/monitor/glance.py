# SPDX-License-Identifier: GPL-2.0-or-later
"""One glance at what all watches of a VM that was handed over look at, each by itself (pulse.py).

It judges nothing. It only tells if they would see the same as last time; if not, or if it cannot tell, they
look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from vmmswap.linux.userfaultfd import is_gone
from vmmswap.monitor.host_looks import HostLooks
from vmmswap.monitor.vm import Vm


class Glance:
    """Of one VM. memory: what to ask on a thread for how much memory the host has; it returns None if the
    watch of that must look.
    """

    def __init__(self, vm: Vm, memory: Callable[[], Callable[[], object]]) -> None:
        self._vm = vm
        self._memory = memory
        self._looks = HostLooks()

    def prepare(self) -> Callable[[], object] | None:
        """What to call on a thread; None: nothing would be saved. It returns something that is equal as long
        as nothing has changed; None: it cannot be told.
        """
        vm = self._vm
        uffds = [process.uffd for process in vm.processes.values() if not process.has_gone]
        memfds = tuple(vm.memfds.values()) if vm.engine.is_tracking else ()
        if memfds and not self._looks.are_shared:
            return None
        return partial(self._glance, memfds, vm.pulse.max_age_s, uffds, self._memory())

    def _glance(
        self, memfds: Sequence[int], max_age_s: float, uffds: Sequence[int], memory: Callable[[], object]
    ) -> object:
        """What may wait for another process comes last."""
        if (far := memory()) is None:
            return None
        if any(is_gone(uffd) for uffd in uffds):
            return None
        who = self._looks.sign(memfds, max_age_s) if memfds else ()
        return None if who is None else (far, who)
