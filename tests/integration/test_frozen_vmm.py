# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM whose cgroup is frozen: it cannot be attached to or detached from, and is told so at once."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.attach import DEADLINE_S, Target
from tests.support.bus import missing
from tests.support.monitor import BusError, Monitor
from vmmswap.attach import hold
from vmmswap.attach.attach import attach_vm
from vmmswap.errors import BusyError
from vmmswap.linux.cgroup import hierarchies_of

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

UFFD = "anon_inode:[userfaultfd]"


class FrozenGroup:
    """A cgroup of the test's own, of v1 or v2, and one inside it for the processes."""

    def __init__(self, mount: Path, *, is_unified: bool, own: str) -> None:
        self.path = mount / own.lstrip("/") / f"vmmswap-frozen-{os.getpid()}"
        self._leaf = self.path / "vmm"
        self._setting = self.path / ("cgroup.freeze" if is_unified else "freezer.state")
        self._values = ("1", "0") if is_unified else ("FROZEN", "THAWED")
        self._leaf.mkdir(parents=True)
        self._home = self.path.parent / "cgroup.procs"

    def add(self, pid: int) -> None:
        (self._leaf / "cgroup.procs").write_text(str(pid))

    def freeze(self) -> None:
        self._setting.write_text(self._values[0])

    def thaw(self) -> None:
        self._setting.write_text(self._values[1])

    def remove(self) -> None:
        self.thaw()
        for pid in (self._leaf / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                self._home.write_text(pid)
        end = time.monotonic() + DEADLINE_S  # the kernel lets go of a process a moment after its end
        for path in (self._leaf, self.path):
            while path.exists() and time.monotonic() < end:
                with contextlib.suppress(OSError):
                    path.rmdir()


def own_path(is_unified: bool) -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" if is_unified else "freezer" in controllers.split(","):
            return path
    return "/"


@pytest.fixture(params=["v1", "v2"])
def group(request: pytest.FixtureRequest) -> Iterator[FrozenGroup]:
    is_unified = request.param == "v2"
    found = hierarchies_of("freezer")
    mount = next((item.point for item in found if item.is_unified is is_unified), None)
    if mount is None:
        pytest.skip(f"this machine has no freezer of cgroup {request.param}")
    try:
        made = FrozenGroup(mount, is_unified=is_unified, own=own_path(is_unified))
    except OSError as error:
        pytest.skip(f"no cgroup {request.param} can be made: {error.strerror}")
    try:
        yield made
    finally:
        made.remove()


def test_attach_says_so_before_it_traces(group: FrozenGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    with Target("memory,nanosleep") as target:
        target.run_on(1)
        fds, maps = target.fds, target.maps
        group.add(target.pid)
        group.freeze()
        with monkeypatch.context() as patch:
            patch.setattr(hold.ptrace, "request", lambda *_: pytest.fail("it was traced"))
            with pytest.raises(BusyError, match=f"is frozen: .*echo .* > {group.path}/.*then try again"):
                attach_vm(target.pidfd)
        group.thaw()
        assert (target.fds, target.maps) == (fds, maps)
        target.run_on()
        with attach_vm(target.pidfd).fds:
            target.run_on()


def test_detach_is_refused_while_it_is_frozen(bus, directory, group: FrozenGroup) -> None:
    with Target("memory,nanosleep") as target:
        fds, maps = target.fds, target.maps
        options = ("--attach", str(target.pid))
        with Monitor("web", bus, directory, *options, listen=False) as monitor:
            assert monitor.enable()["State"] == "Active"
            group.add(target.pid)
            group.freeze()
            with pytest.raises(BusError, match="is frozen"):
                monitor.call("Detach")
            assert monitor.status()["State"] == "Active"
            group.thaw()
            monitor.call("Detach")
            assert monitor.wait_exit() == 0
            assert "the VMM is as it was" in monitor.log
        assert (target.fds, target.maps, target.wrong) == (fds, maps, 0)


def test_a_monitor_that_must_end_says_what_stays_behind(bus, directory, group: FrozenGroup) -> None:
    with Target("memory,nanosleep") as target:
        options = ("--attach", str(target.pid))
        with Monitor("web", bus, directory, *options, listen=False) as monitor:
            assert monitor.enable()["State"] == "Active"
            group.add(target.pid)
            group.freeze()
            monitor.process.terminate()
            assert monitor.wait_exit() == 0
            assert "the VMM is as it was" not in monitor.log
            assert f"an idle userfaultfd stays in {target.pid} (" in monitor.log
            assert "is frozen" in monitor.log
        group.thaw()
        assert UFFD in target.fds
        target.run_on()
        assert target.wrong == 0
