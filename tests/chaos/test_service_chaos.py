# SPDX-License-Identifier: GPL-2.0-or-later
"""The same under a real systemd, which restarts the monitor: killed at random instants and in the gap."""

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import installation, service
from tests.support.machine import Machine, MachineError
from tests.support.service import Service

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("CHAOS_SERVICE_KILLS") or 12)
SEED = int(os.environ.get("CHAOS_SEED") or time.time_ns())


@pytest.fixture(scope="module")
def host(tree: Path) -> Iterator[Service]:
    if reason := Machine.missing():
        pytest.skip(reason)
    with Machine(binds={installation.INSIDE: str(tree)}) as machine:
        yield service.install(machine)


def wait_restarted(host: Service, name: str, pid: int) -> int:
    """Until another process than `pid` is the monitor and answers."""

    def look() -> int | None:
        shown = host.machine.unit(f"vmmswap@{name}.service", "ActiveState", "MainPID")
        new = int(shown["MainPID"])
        if shown["ActiveState"] != "active" or new in (0, pid):
            return None
        try:
            host.status(name)
        except MachineError:
            return None  # it serves the guest before it is on the bus
        return new

    return host.machine.wait_for(f"{name} to be restarted", look)


@contextmanager
def journal_shown(host: Service, name: str) -> Iterator[None]:
    try:
        yield
    except MachineError as error:
        raise AssertionError(f"{error} (seed {SEED})\n{host.log(name, lines=300)}") from error


def test_killed_at_random_instants(host: Service) -> None:
    dice = random.Random(SEED)  # noqa: S311 - no secrets are made of it
    unit = "vmmswap@chaos.service"
    waiting = 0
    with host.guest("chaos", ("8M", "4M")) as guest, journal_shown(host, "chaos"):
        guest.fork(1)
        guest.work_start(rate=500)
        host.manager("chaos", "Enable")
        for number in range(KILLS):
            pid = host.pid("chaos")
            forking = guest.start("fork 1 by=main") if number % 4 == 1 else None
            time.sleep(dice.random() * 0.1)  # any instant will do
            host.machine.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", unit)
            waiting += guest.status().busy_workers
            wait_restarted(host, "chaos", pid)
            host.manager("chaos", dice.choice(["Enable", "Disable"]))
            if forking:
                forking.wait()
        assert host.status("chaos")["Restarts"] == KILLS
        host.swap_in("chaos")
        guest.work_stop()
        done = guest.verify()
        status = guest.status()
        assert (done.wrong_bytes, done.lost_processes) == (0, 0), f"{done} (seed {SEED})\n{host.log('chaos')}"
        assert (status.wrong_bytes, status.bus_errors) == (0, 0), f"{status} (seed {SEED})"
        print(
            f"\nsystemd: kills {KILLS}, faults in flight {waiting}, bytes verified"
            f" {status.verified_bytes + done.bytes}, bytes wrong {status.wrong_bytes}, longest stall of a"
            f" guest thread {status.longest_stall_us // 1000} ms (seed {SEED})"
        )


@pytest.mark.parametrize("action", ["kill", "segv", "stop"])
def test_killed_in_the_gap(host: Service, action: str) -> None:
    name = f"gap-{action}"
    # The unit's sandbox hides /tmp and /home, where this tree may be.
    host.machine.sh(f"cp {ROOT}/vmmswap/_engine_failpoints.abi3.so /usr/lib/vmmswap/vmmswap/")
    host.drop_in(
        name,
        "Environment=VMMSWAP_ENGINE=failpoints",
        f"Environment=VMMSWAP_FAILPOINTS=fault.fork-read={action}",
        *(["WatchdogSec=5s"] if action == "stop" else []),  # finds the stopped one
    )
    with host.guest(name, ("8M", "4M")) as guest:
        host.swap_out(name)
        pid = host.pid(name)
        guest.work_start()
        forking = guest.start("fork 1 by=main")
        wait_restarted(host, name, pid)
        assert forking.wait().made
        guest.wait_work(500)
        status = host.status(name)
        assert (status["Restarts"], status["Processes"]) == (1, 2), host.log(name)
        host.swap_in(name)
        guest.work_stop()
        done = guest.verify()
        status = guest.status()
        assert (done.wrong_bytes, done.lost_processes) == (0, 0), f"{done}\n{host.log(name)}"
        assert (status.wrong_bytes, status.bus_errors) == (0, 0)
