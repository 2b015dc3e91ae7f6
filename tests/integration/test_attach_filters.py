# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach past a seccomp filter that kills at what has to be done, as virtiofsd has one: only with `force`."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.attach import NOBODY, Target
from vmmswap.attach import remote_call
from vmmswap.attach.attach import attach_vm, detach_process
from vmmswap.attach.options import Options
from vmmswap.errors import NotSupportedError
from vmmswap.failpoint import CALL_STEPS, STEPS, VARIABLE

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it traces, and hands /dev/userfaultfd over"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the other architecture is not tried"),
]

FORCE = Options(force=True)
CALLS = 7  # socketpair, recvmsg, ioctl, three times close, mmap


@pytest.fixture
def target():
    with Target("nanosleep", "seccomp-back-end", prefix=NOBODY) as running:
        yield running


def attached_and_detached(target: Target) -> None:
    attached = attach_vm(target.pidfd, FORCE)
    with attached.fds:
        target.run_on()
        assert "past its seccomp filter" in attached.explanation
        vmm = attached.vmm
        detach_process(vmm.pidfd, [vmm.uffd], vmm.dummy_page, force=True)


def test_without_force_it_is_refused(target):
    fds, maps = target.fds, target.maps
    with pytest.raises(NotSupportedError, match=r"would kill the process at prctl.*option force"):
        attach_vm(target.pidfd)
    target.run_on()
    assert (target.fds, target.maps, target.wrong) == (fds, maps, 0)


def test_with_force_the_filter_is_passed_over_and_stays(target):
    fds, maps = target.fds, target.maps
    for _ in range(2):
        attached_and_detached(target)
    target.run_on()
    assert (target.fds, target.maps, target.wrong) == (fds, maps, 0)
    assert target.status("Seccomp") == "2"
    test_without_force_it_is_refused(target)


@pytest.mark.parametrize("action", ["kill", "once:EIO"])
def test_killed_or_failed_at_any_step_the_target_runs_on(target, action):
    calls = [(f"call.{step}", skip) for step in CALL_STEPS for skip in range(CALLS)]
    for step, skip in (*((step, 0) for step in STEPS if not step.startswith("call.")), *calls):
        status = attach_in_child(target.pid, f"{step}={action}@{skip}")
        # An error where something is tidied up is no error of the attach.
        assert status == -signal.SIGKILL if action == "kill" else status in (0, 1), step
        target.run_on()
        assert (target.wrong, target.status("TracerPid")) == (0, "0"), step
    attached_and_detached(target)


def attach_in_child(pid: int, failpoint: str) -> int:
    """Its return code."""
    child = os.fork()
    if child == 0:
        os.environ[VARIABLE] = failpoint
        try:
            attach_vm(os.pidfd_open(pid), FORCE)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_filter_that_is_known_to_kill_is_not_tried_unread(target, monkeypatch):
    monkeypatch.setattr(remote_call, "read_filters", lambda _tid: None)  # as without CAP_SYS_ADMIN
    monkeypatch.setattr(remote_call, "_program_of", lambda _target: "virtiofsd")
    with pytest.raises(NotSupportedError, match="seccomp filters that this monitor may not read"):
        attach_vm(target.pidfd, FORCE)
    target.run_on()
