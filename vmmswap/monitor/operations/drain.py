# SPDX-License-Identifier: GPL-2.0-or-later
"""Has a VMM end its I/O by QMP while a swap-out waits between protecting and evicting.

`stop` returns when the VMM's block layer has nothing in flight; what begins after that meets the protection
and faults. All the while the guest stands still, so it must run again whatever happens here: that it is held
is written down before `stop` is sent, and `cont` is sent until it is answered, by our successor if need be. A
VM that somebody else had paused stays paused; if somebody pauses it in the very moment between our question
and our `stop`, we cannot know, and it runs again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

from vmmswap.config import Config
from vmmswap.errors import VmmswapError
from vmmswap.monitor.vm import Vm
from vmmswap.reasons import reason_of

if TYPE_CHECKING:
    from vmmswap.monitor.qmp import Qmp

_log = logging.getLogger("vmmswap.drain")

_CONNECT_LIMIT_S = 5.0
_RETRY_S = 1.0
_GOES_ON = ("running", "suspended")  # QEMU's states that `stop` changes and `cont` brings back
_BETTER = ("bpf", "collapse", "move")  # pin checks with which nobody is asked to drain


class Drain:
    """Of one VM. on_drained(): resume the job. on_failed(reason): cancel it. on_idle(): nothing is held any
    more.
    """

    def __init__(
        self,
        vm: Vm,
        config: Callable[[], Config],
        on_drained: Callable[[], None],
        on_failed: Callable[[str], None],
        on_idle: Callable[[], None],
    ) -> None:
        self._vm = vm
        self._config = config
        self._on_drained = on_drained
        self._on_failed = on_failed
        self._on_idle = on_idle
        self._qmp: Qmp | None = None
        self._turn = asyncio.Lock()  # one at a time talks
        self._tasks: set[asyncio.Task[None]] = set()
        self._wanted: asyncio.Task[None] | None = None  # the one that the running job waits for
        self._limit: asyncio.Timeout | None = None
        self._is_kept = False  # the session is, for a job that runs or follows
        self._told = ""
        self.pause_us = 0  # how long the last swap-out held the guest by `stop`
        if vm.manifest.qmp:  # at once: when it is needed another version may be installed
            import vmmswap.monitor.qmp  # noqa: F401, PLC0415
        if vm.manifest.is_held:  # a predecessor died while it held the VM
            self._start(self._release())

    @property
    def is_ready(self) -> bool:
        """True if the next job may count on it."""
        return self._qmp is not None

    @property
    def is_busy(self) -> bool:
        """True if the VM is held, or may be."""
        return bool(self._tasks)

    @property
    def _may_be_needed(self) -> bool:
        """True if the next job may need it: a way that is tried before this one has not worked yet."""
        vm = self._vm
        return bool(vm.manifest.qmp) and self._config().may_drain and vm.engine.pin_check not in _BETTER

    async def prepare(self) -> None:
        """Before a job that may need it: open a session, or say in the log why there is none."""
        if not self._may_be_needed:
            return
        try:
            async with asyncio.timeout(_CONNECT_LIMIT_S), self._turn:
                self._is_kept = True
                if self._qmp is None:
                    self._qmp = await self._connect()
        except TimeoutError:
            self._tell(_no_answer(self._vm))
        except VmmswapError as error:
            self._tell(error.message)

    async def _connect(self) -> Qmp:
        from vmmswap.monitor.qmp import Qmp  # noqa: PLC0415  few VMs have such a socket

        return await Qmp.connect(self._vm.manifest.qmp, self._vm.vmm.pid)

    def job_starts(self) -> None:
        self.pause_us = 0

    def protected(self) -> None:
        """A job waits for the drain."""
        self._wanted = self._start(self._drain(self._config().freeze_timeout_s))

    def job_ended(self) -> None:
        """Nobody waits any more: let whoever is held run at once."""
        self._wanted = None
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())
            self._limit = None

    def finish(self) -> None:
        """No job that may need it runs or follows."""
        self._is_kept = False
        self._close_if_unused()

    def drop(self) -> None:
        """The VM is gone."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        self._wanted = None
        self.finish()

    # Inside

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name="drain")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("bug in the drain by QMP", exc_info=error)
        if task in self._tasks:
            self._tasks.discard(task)
            self._close_if_unused()
            if not self._tasks:
                self._on_idle()

    def _close_if_unused(self) -> None:
        if self._qmp is not None and not self._is_kept and not self._tasks:
            self._qmp.close()
            self._qmp = None

    def _fail(self, task: asyncio.Task[None] | None, reason: str) -> None:
        if task is not None and self._wanted is task:
            self._wanted = None
            self._on_failed(reason)

    async def _drain(self, limit_s: float) -> None:
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limit_s):
                await self._turn.acquire()
        except TimeoutError:
            self._fail(task, _late(self._vm, "cont", limit_s))
            return
        try:
            if self._wanted is not task:
                return
            since_ns = time.monotonic_ns()
            failure = await self._stop(limit_s)
            if failure:
                loop.call_soon(self._fail, task, failure)  # after `cont` is on its way
            alarm = loop.call_later(limit_s, self._fail, task, _late(self._vm, "cont", limit_s))
            try:
                await self._cont()
            finally:
                alarm.cancel()
            self._note_pause((time.monotonic_ns() - since_ns) // 1000)
        finally:
            self._turn.release()
        if not failure and self._wanted is task:
            self._on_drained()

    def _note_pause(self, held_us: int) -> None:
        self.pause_us = max(self.pause_us, held_us)
        _log.info("the VMM's I/O was drained by QMP: the guest was held for %d us", held_us)

    async def _stop(self, limit_s: float) -> str:
        """Why it failed, or ""."""
        qmp = self._qmp
        if qmp is None:
            return f"the QMP session with {self._vm.manifest.qmp} is closed"
        try:
            async with asyncio.timeout(limit_s) as self._limit:
                state = await qmp.run_state()
                if state == "inmigrate":  # `stop` would mean: do not start when migration has ended
                    return (
                        f"{self._vm.manifest.qmp}: the VM is being migrated in: enable it when that is done"
                    )
                if state in _GOES_ON:
                    self._vm.change(is_held=True)
                await qmp.execute("stop")
        except TimeoutError:
            return _late(self._vm, "stop", limit_s)
        except VmmswapError as error:
            return error.message
        finally:
            self._limit = None
        return ""

    async def _release(self) -> None:
        async with self._turn:
            await self._cont()

    async def _cont(self) -> None:
        """Let the VM run again if it is we who hold it. As long as that takes: a VMM whose disk hangs answers
        when it has recovered, and would forget the command if we closed the session.
        """
        from vmmswap.monitor.qmp import QmpError, QmpRefusedError  # noqa: PLC0415  see _connect()

        while self._vm.manifest.is_held:
            try:
                if self._qmp is None:
                    async with asyncio.timeout(_CONNECT_LIMIT_S):
                        self._qmp = await self._connect()
                await self._qmp.execute("cont")
            except QmpRefusedError as error:
                _log.error("the VM stays paused: %s", error.message)
                self._fail(asyncio.current_task(), error.message)
            except (QmpError, TimeoutError) as error:
                self._tell(f"the VM is paused and must run again: {reason_of(error) or _no_answer(self._vm)}")
                self._forget()
                await asyncio.sleep(_RETRY_S)
                continue
            self._vm.change(is_held=False)

    def _forget(self) -> None:
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None

    def _tell(self, what: str) -> None:
        """Once, until there is something else to say."""
        if what != self._told:
            self._told = what
            _log.warning("%s", what)


def _late(vm: Vm, command: str, limit_s: float) -> str:
    return (
        f"{vm.manifest.qmp}: QMP {command} is not answered within {limit_s:g} s (FreezeTimeoutSec=): a disk"
        " of the VM's may hang; nothing was swapped out, try again when it has recovered"
    )


def _no_answer(vm: Vm) -> str:
    return (
        f"the QMP socket {vm.manifest.qmp} gives no greeting within {_CONNECT_LIMIT_S:g} s: QEMU talks to one"
        " client at a time, so give vmmswap a socket of its own"
    )
