# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap/monitor/operations/machine.py: any order at any time, against a model of the engine."""

import pytest
from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vmmswap.engine import Job
from vmmswap.errors import BusyError, NoSpaceError, NotSupportedError
from vmmswap.monitor.operations.machine import Action, Machine
from vmmswap.status import Operation, State

NO_SPACE = NoSpaceError("no space left")
STRANGER = NotSupportedError("a stranger maps the memory")
_JOBS = {Action.SWAP_OUT: Job.SWAP_OUT, Action.SWAP_IN: Job.SWAP_IN, Action.TRIM: Job.TRIM}


class Orders(RuleBasedStateMachine):
    """The engine as the machine may assume it: one job, which ends somehow, and may be told to end."""

    def __init__(self):
        super().__init__()
        self.machine = Machine()
        self.running = Job.NONE
        self.cancelled = False
        self.tracking = False
        self.last_order = None  # "out" or "in"

    def do(self, action):
        while action in _JOBS:
            assert self.running is Job.NONE, "one job at a time"
            self.running, self.cancelled = _JOBS[action], False
            if self.running is Job.SWAP_OUT:
                self.tracking = True
            return
        if action is Action.CANCEL:
            assert self.running is not Job.NONE, "nothing to turn back"
            self.cancelled = True

    @rule()
    def enable(self):
        if self.machine.ending:
            with pytest.raises(BusyError):
                self.machine.enable()
            return
        self.last_order = "out"
        self.do(self.machine.enable())

    @rule()
    def disable(self):
        self.last_order = "in"
        self.do(self.machine.disable())

    @rule()
    def trim(self):
        if self.running is not Job.NONE:
            with pytest.raises(BusyError):
                self.machine.trim()
            return
        self.do(self.machine.trim())

    @rule()
    def release(self):
        self.machine.ending = True
        self.disable()

    @precondition(lambda self: self.machine.ending)
    @rule()
    def release_called_off(self):
        self.machine.ending = False

    @precondition(lambda self: self.running is not Job.NONE)
    @rule(error=strategies.sampled_from([None, None, NO_SPACE]))
    def job_ends(self, error):
        ended, self.running = self.running, Job.NONE
        if ended is Job.SWAP_IN and not error and not self.cancelled:
            self.tracking = False
        following = self.machine.following
        self.do(self.machine.job_done(error, self.tracking))
        if following is Job.NONE:
            assert self.running is Job.NONE
            assert self.machine.error == error

    @precondition(lambda self: self.running is Job.SWAP_IN and self.machine.following is Job.NONE)
    @rule()
    def memory_runs_short(self):
        self.do(self.machine.hold())
        assert self.cancelled

    @invariant()
    def the_last_order_is_what_will_come_about(self):
        machine = self.machine
        assert machine.job is self.running
        goal = machine.following if machine.following is not Job.NONE else machine.job
        if goal in (Job.SWAP_OUT, Job.SWAP_IN):
            assert self.last_order == ("out" if goal is Job.SWAP_OUT else "in")
        if self.last_order == "in" and self.running is Job.SWAP_OUT:
            assert machine.following is Job.SWAP_IN
        if self.last_order == "out" and self.running is Job.SWAP_IN:
            assert machine.following is Job.SWAP_OUT
        assert machine.wants_out == (self.last_order == "out")

    @invariant()
    def a_job_that_is_in_the_way_was_told_to_end(self):
        if self.machine.following is not Job.NONE:
            assert self.cancelled

    @invariant()
    def state_and_operation_say_what_is(self):
        machine = self.machine
        assert (machine.operation is Operation.NONE) == (self.running is Job.NONE)
        if self.running is not Job.NONE:
            assert machine.state is State.IN_PROGRESS
        elif machine.error:
            assert machine.state is State.FAILED
        else:
            assert machine.state is (State.ACTIVE if self.tracking else State.READY)


Orders.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestOrders = Orders.TestCase


def test_enable_while_active_swaps_out_again_what_came_back():
    machine = Machine()
    assert machine.enable() is Action.SWAP_OUT
    assert machine.enable() is Action.NOTHING  # while swapping out
    assert machine.job_done(None, tracking=True) is Action.NOTHING
    assert machine.state is State.ACTIVE
    assert machine.enable() is Action.SWAP_OUT


def test_disable_while_ready_does_nothing():
    machine = Machine()
    assert machine.disable() is Action.NOTHING
    assert machine.state is State.READY


def test_turn_round_and_round_again():
    machine = Machine()
    machine.enable()
    assert machine.disable() is Action.CANCEL
    assert machine.enable() is Action.NOTHING  # told to end already: out again afterwards
    assert machine.job_done(None, tracking=True) is Action.SWAP_OUT
    assert machine.disable() is Action.CANCEL
    assert machine.job_done(None, tracking=True) is Action.SWAP_IN
    assert machine.enable() is Action.CANCEL
    assert machine.job_done(None, tracking=True) is Action.SWAP_OUT


def test_an_order_while_a_held_job_ends_is_not_lost():
    for order, action in ((Machine.enable, Action.SWAP_OUT), (Machine.disable, Action.SWAP_IN)):
        machine = Machine()
        machine.enable()
        machine.job_done(None, tracking=True)
        machine.disable()
        assert machine.hold() is Action.CANCEL
        assert order(machine) is Action.NOTHING
        assert machine.job_done(None, tracking=True) is action


def test_a_failed_swap_out_is_served_and_can_go_either_way():
    for order, action in ((Machine.enable, Action.SWAP_OUT), (Machine.disable, Action.SWAP_IN)):
        machine = Machine()
        machine.enable()
        machine.job_done(NO_SPACE, tracking=True)
        assert (machine.state, machine.error) == (State.FAILED, NO_SPACE)
        assert order(machine) is action
        assert (machine.state, machine.error) == (State.IN_PROGRESS, None)


def test_a_swap_out_that_failed_before_anything_was_registered_is_forgotten_by_disable():
    machine = Machine()
    machine.enable()
    machine.job_done(NotSupportedError("not supported"), tracking=False)
    assert machine.state is State.FAILED
    assert machine.disable() is Action.NOTHING
    assert machine.state is State.READY


def test_what_is_refused_before_it_begins_takes_the_same_order_of_meanwhile_with_it():
    machine = Machine()
    assert machine.enable() is Action.SWAP_OUT
    assert machine.disable() is Action.CANCEL
    assert machine.is_cancelled
    assert machine.enable() is Action.NOTHING
    assert machine.not_begun(STRANGER, tracking=True) is Action.NOTHING
    assert (machine.state, machine.error) == (State.FAILED, STRANGER)


def test_what_is_cancelled_before_it_begins_is_followed_by_the_last_order():
    machine = Machine()
    machine.enable()
    machine.disable()
    assert machine.not_begun(STRANGER, tracking=True) is Action.SWAP_IN
    machine = Machine()
    machine.enable()
    machine.disable()
    machine.enable()
    assert machine.not_begun(None, tracking=True) is Action.SWAP_OUT
