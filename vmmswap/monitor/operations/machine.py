# SPDX-License-Identifier: GPL-2.0-or-later
"""What to do next with a VM's memory, as logic alone: orders and the ends of jobs come in, actions go out.

One job at a time, and the last order wins: an order against the running job cancels it, and the other one
starts when it has ended.
"""

from __future__ import annotations

import enum

from vmmswap.engine import Job
from vmmswap.errors import BusyError, VmmswapError
from vmmswap.status import Operation, State


class Action(enum.Enum):
    """What the caller must do now; the machine counts on it."""

    NOTHING = "nothing"
    CANCEL = "cancel the running job"
    SWAP_OUT = "start a swap-out"
    SWAP_IN = "start a swap-in"
    TRIM = "start a trim"
    FLUSH = "start a flush"


_START = {
    Job.SWAP_OUT: Action.SWAP_OUT,
    Job.SWAP_IN: Action.SWAP_IN,
    Job.TRIM: Action.TRIM,
    Job.FLUSH: Action.FLUSH,
}
_OPERATION = {
    Job.SWAP_OUT: Operation.SWAP_OUT,
    Job.SWAP_IN: Operation.SWAP_IN,
    Job.TRIM: Operation.TRIM,
    Job.FLUSH: Operation.FLUSH,
}


class Machine:
    """After CANCEL or a start, job_done() must follow, once. A job that cannot start is done at once."""

    def __init__(self) -> None:
        self.job = Job.NONE
        self.following = Job.NONE  # what starts when the running job has ended
        self._is_held = False  # the running job was cancelled with nothing to follow
        self.tracking = False  # guest memory is registered: something is out, or may be
        self.error: VmmswapError | None = None  # why the last job failed
        self.wants_out = False  # by the last order
        self.ending = False  # the VM is being released: no order against swapping in is taken

    @property
    def state(self) -> State:
        if self.job is not Job.NONE:
            return State.IN_PROGRESS
        if self.error:
            return State.FAILED
        return State.ACTIVE if self.tracking else State.READY

    @property
    def operation(self) -> Operation:
        return _OPERATION.get(self.job, Operation.NONE)

    @property
    def is_cancelled(self) -> bool:
        """The job is to end as soon as it can."""
        return self.following is not Job.NONE or self._is_held

    def check_enable(self) -> None:
        """BusyError while the VM is being released."""
        if self.ending:
            raise BusyError("the VM is being released: it cannot be enabled any more")

    def enable(self) -> Action:
        """Swap out; while Active again, what came back. BusyError while the VM is being released."""
        self.check_enable()
        self.wants_out = True
        return self._want(Job.SWAP_OUT)

    def disable(self) -> Action:
        """Swap in; where nothing is out, only forget a failure."""
        self.wants_out = False
        if self.job is Job.NONE and not self.tracking:
            self.error = None
            return Action.NOTHING
        return self._want(Job.SWAP_IN)

    def trim(self) -> Action:
        """Nothing to do while nothing is out. BusyError while a job runs."""
        return self._want_while_out(Job.TRIM)

    def flush(self) -> Action:
        """As trim()."""
        return self._want_while_out(Job.FLUSH)

    def _want_while_out(self, job: Job) -> Action:
        if self.job is not Job.NONE:
            raise BusyError(f"a {self.operation} is under way: {_OPERATION[job]} when it is done")
        if not self.tracking:
            return Action.NOTHING
        return self._want(job)

    def job_done(self, error: VmmswapError | None, tracking: bool) -> Action:
        """The job has ended, or could not start; tracking: whether guest memory is registered now."""
        following, self.following = self.following, Job.NONE
        self.job = Job.NONE
        self._is_held = False
        self.tracking = tracking
        self.error = error
        if following is Job.SWAP_IN:
            return self.disable()
        return self._start(following) if following is not Job.NONE else Action.NOTHING

    def not_begun(self, error: VmmswapError | None, tracking: bool) -> Action:
        """The job was not begun. One of its kind that was ordered meanwhile is refused with it."""
        if error and self.following is self.job:
            self.following = Job.NONE
        return self.job_done(error, tracking)

    def hold(self) -> Action:
        """Cancel the running job with nothing to follow."""
        self.following = Job.NONE
        self._is_held = self.job is not Job.NONE
        return Action.CANCEL if self._is_held else Action.NOTHING

    def _want(self, job: Job) -> Action:
        if self.job is Job.NONE:
            return self._start(job)
        if self.is_cancelled:
            self.following = job
            return Action.NOTHING
        if self.job is job:
            return Action.NOTHING
        self.following = job
        return Action.CANCEL

    def _start(self, job: Job) -> Action:
        self.job = job
        self.error = None
        return _START[job]
