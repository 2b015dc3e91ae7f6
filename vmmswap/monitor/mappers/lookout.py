# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks for processes that begin to map guest memory while it is out, and that nobody reported.

Such a process reads zeros where memory is out, and what it reads is true for the guest from then on. So all
memory is swapped in, and Enable is refused while the process is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from vmmswap.errors import NoSuchVMError, VmmswapError
from vmmswap.monitor.guard import Failures
from vmmswap.monitor.host_looks import HostLooks
from vmmswap.monitor.looks import SeenTwice
from vmmswap.monitor.mappers import coverage
from vmmswap.monitor.mappers.coverage import MappedRange
from vmmswap.monitor.mappers.processes import Processes
from vmmswap.monitor.together import Waits
from vmmswap.monitor.vm import Vm


class Unserved:
    """on_found(error) is called for a process that maps guest memory and is not served, while any is out."""

    def __init__(self, on_found: Callable[[VmmswapError], None]) -> None:
        self._on_found = on_found
        self._private = SeenTwice[MappedRange]()
        self._shared = SeenTwice[MappedRange]()

    def look_at_private(self, mapped: Iterable[MappedRange]) -> None:
        """Look at private mappings: no userfaultfd can ever serve them."""
        if (one := self._private.look_at(_by_pid(mapped))) is not None:
            self._on_found(coverage.private_error(one))

    def look_at_shared(self, mapped: Iterable[MappedRange]) -> None:
        """Look at shared mappings that nobody reported."""
        if (one := self._shared.look_at(_by_pid(mapped))) is not None:
            self._on_found(coverage.stranger_error(one))


def _by_pid(mapped: Iterable[MappedRange]) -> dict[int, MappedRange]:
    return {one.pid: one for one in mapped}


class Watcher:
    """Watches who maps a VM's memory, from its creation until close(). This one has nothing to do: the memory
    is private, and nobody else can map it.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def close(self) -> None:
        """Stop watching."""

    async def stop(self) -> None:
        """Close, and wait until no process is being changed."""
        self.close()

    async def check_before_enable(self) -> None:
        """NotSupportedError if memory must not be swapped out."""
        await self._processes.check_covered()

    def check_before_exit(self) -> None:
        """BusyError if the VM cannot be released now."""


class Lookout(Watcher):
    """The watcher of a VM that was handed over. If such a VMM lets one more process map the memory, it has us
    serve the process before that touches anything (add-process).
    """

    def __init__(self, vm: Vm, processes: Processes, on_found: Callable[[VmmswapError], None]) -> None:
        super().__init__(processes)
        self._vm = vm
        self._unserved = Unserved(on_found)
        self._looks = HostLooks()
        self._failures = Failures("cannot look at who maps guest memory")
        self._task = asyncio.get_running_loop().create_task(self._run(), name="lookout")

    def close(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            since_s = loop.time()
            try:
                if self._vm.engine.stats().tracking:
                    await self._look()
            except NoSuchVMError:
                return
            except Exception as error:  # whatever failed: memory is out, so keep looking
                self._failures.log(error)
                self._vm.pulse.forget()
            await self._vm.pulse.rest(loop.time() - since_s)

    async def _look(self) -> None:
        question = coverage.question_of(self._vm)
        pulse = self._vm.pulse
        look = pulse.together.ask(self._looks.mapped, question, pulse.max_age_s, waits=Waits.FOR_ANYBODY)
        picture = await look
        if picture.private or picture.strangers:
            pulse.stir()  # see soon if they are still there
        self._unserved.look_at_private(picture.private)
        self._unserved.look_at_shared(picture.strangers)
