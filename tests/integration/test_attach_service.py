# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach as an operator does it: vmmswapctl, vmmswapd, and the monitor in its unit's sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import installation, service
from tests.support.attach_unit import KNOWN, PROGRAM, install_targets, target
from tests.support.machine import Machine
from tests.support.service import Service
from vmmswap.names import HOST_INTERFACE, HOST_PATH

HOST = ("org.vmmswap", HOST_PATH, HOST_INTERFACE)


@pytest.fixture(scope="module")
def host(tree: Path) -> Iterator[Service]:
    if reason := Machine.missing():
        pytest.skip(reason)
    with Machine(binds={installation.INSIDE: str(tree)}) as machine:
        install_targets(machine)
        yield service.install(machine)


def test_from_attach_to_detach(host: Service) -> None:
    with target(host, "plain", KNOWN) as running:
        host.machine.run("vmmswapctl", "attach", "web", str(running.pid))
        assert "userfaultfd" in running.links()
        host.machine.run("systemctl", "kill", "--signal=STOP", "plain")  # it soon has all back, at work
        status = host.swap_out("web")
        assert status["SwapPages"] > 0, host.log("web")
        host.machine.run("systemctl", "kill", "--signal=CONT", "plain")
        running.run_on()
        host.swap_out("web")
        host.machine.run("systemctl", "kill", "--signal=KILL", "vmmswap@web.service")
        running.run_on()
        assert host.wait_state("web", "Active")["Restarts"] == 1
        assert host.machine.sh("stat -c '%U %a' /run/vmmswap/web.sock").stdout == "root 200\n"  # still there
        host.machine.run("vmmswapctl", "detach", "web")
        host.wait_unit("web", "inactive")
        assert "userfaultfd" not in running.links(), host.log("web")
        running.run_on()
    # Nobody has asked for a socket, so it goes with its VM, and all that the monitor left. There is no
    # ledger: each page of this program repeats one word, so nothing went to disk.
    for path in ("/run/vmmswap/web.sock", "/var/log/vmmswap/web", "/var/lib/vmmswap/web"):
        host.machine.wait_for(f"{path} to go", lambda path=path: not host.machine.path(path).exists())


def test_private_memory(host: Service) -> None:
    """A thread is planted; the VMM opens its pagemap for the monitor, which may not."""
    with target(host, "default", KNOWN, "anonymous not-forked") as running:
        before = running.links()
        host.machine.run("vmmswapctl", "attach", "default", str(running.pid))
        assert "vmmswap mailbox" in running.links()
        status = host.swap_out("default")
        assert (status["PinCheck"], status["Origin"]) == ("move", "attach"), host.log("default")
        running.run_on()
        host.machine.run("systemctl", "kill", "--signal=KILL", "vmmswap@default.service")
        running.run_on()
        assert host.wait_state("default", "Active")["Restarts"] == 1
        host.swap_out("default")
        running.run_on()
        host.machine.run("vmmswapctl", "detach", "default")
        host.wait_unit("default", "inactive")
        assert running.links() == before, host.log("default")
        names = host.machine.sh(f"cat /proc/{running.pid}/task/*/comm").stdout.split()
        assert "vmmswap" not in names
        running.run_on()


def test_filters_that_the_sandbox_hides(host: Service) -> None:
    """Refused, unless forced: then the device goes through, for this filter only denies userfaultfd(2)."""
    with target(host, "filtered", PROGRAM, "seccomp-kill") as running:
        done = host.machine.run("vmmswapctl", "attach", "filtered", str(running.pid), check=False)
        assert (done.returncode, "seccomp filters" in done.stderr) == (1, True), done
        running.run_on()
        options = ("a{sv}", "1", "force", "b", "true")
        host.machine.call(
            *HOST, "AttachWithOptions", "su" + options[0], "filtered", str(running.pid), *options[1:]
        )
        host.swap_out("filtered")
        running.run_on()
        host.machine.run("vmmswapctl", "exit", "filtered")
        host.wait_unit("filtered", "inactive")
        running.run_on()


def test_a_refused_attach_leaves_no_monitor(host: Service) -> None:
    """It would be listed as a VM, and keep its memory locked."""
    done = host.machine.run("vmmswapctl", "attach", "refused", "1", check=False)
    assert (done.returncode, "no guest memory that can be taken over" in done.stderr) == (1, True), done
    host.wait_unit("refused", "inactive")
    assert "refused" not in host.machine.run("vmmswapctl", "list").stdout
    with target(host, "afterwards", KNOWN) as running:  # nothing of it is in the way
        host.machine.run("vmmswapctl", "attach", "refused", str(running.pid))
        host.swap_out("refused")
        host.machine.run("vmmswapctl", "detach", "refused")
        host.wait_unit("refused", "inactive")
