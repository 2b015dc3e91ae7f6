# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole monitor killed at each failpoint and at random instants, under a guest that checks every byte.

CHAOS_MONITOR_KILLS: how often (`make chaos` takes more). CHAOS_SEED: the same choices again.
"""

import os
import random
import subprocess
import time
from dataclasses import dataclass

import pytest

from tests.support.bus import PrivateBus, missing
from tests.support.guest import Guest
from tests.support.monitor import PLAIN, PROGRAM, BusError
from tests.support.restarts import WITH_FAILPOINTS, failing, restarted

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

KILLS = int(os.environ.get("CHAOS_MONITOR_KILLS") or 20)
AT_FAILPOINTS = KILLS // 4  # a life need not come by the point that is armed in it
LIVES_MAX = 4 * KILLS
SEED = int(os.environ.get("CHAOS_SEED") or time.time_ns())
REGIONS = ("6M", "3M")
CHILDREN_MAX = 3
START_S = 60.0
PLAIN_SHARE = 0.25  # of all seeds: the VM has no tiers
LIFE_S = 3.0  # for the failpoint to be reached

# Of which no life of these comes by: page faults one after the other, pins and poison, pages that somebody
# else filled, a REMOVE larger than this guest, and errors that only a test of the engine makes.
LEFT_OUT = {
    "event.piece",
    "listeners.nap",
    "listeners.turn",
    "lost.looked",
    "map_read.minute",
    "pins.blind",
    "pins.load",
    "poison.lifted",
    "reads.cut",
    "resident.cachestat",
    "restore.awaits-removal",
    "shared_look.making",
    "shared_look.waiting",
    "shared_look.fdinfo",
    "uffd.continue-protected",
}


@pytest.fixture(scope="module")
def bus():
    with PrivateBus() as private:
        yield private


def failpoints():
    listed = subprocess.run(
        [*PROGRAM, "--list-failpoints"],
        env=os.environ | WITH_FAILPOINTS,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.split() if name not in LEFT_OUT]


@dataclass
class Tally:
    kills: int = 0
    at_failpoints: int = 0
    faults_in_flight: int = 0

    def line(self, status, verified_bytes):
        return (
            f"kills {self.kills} ({self.at_failpoints} at failpoints),"
            f" faults in flight {self.faults_in_flight},"
            f" bytes verified {verified_bytes}, bytes wrong {status.wrong_bytes},"
            f" longest stall of a guest thread {status.longest_stall_us // 1000} ms (seed {SEED})"
        )


def order_until_death(service, dice):
    """Give orders until the monitor is dead: each may be cut off at any point. Whether it died by itself."""
    monitor = service.monitor
    end = time.monotonic() + START_S
    has_answered = False
    while monitor.process.poll() is None and time.monotonic() < end:
        try:
            monitor.call(dice.choice(["Enable", "Enable", "Disable", "Trim", "Wake", "Flush"]))
        except BusError:
            time.sleep(0.01)  # not on the bus yet, busy, or dead
        else:
            if not has_answered:
                end = time.monotonic() + LIFE_S
            has_answered = True
            time.sleep(dice.random() * 0.05)
    return service.await_death(0)


def change_processes(guest, dice):
    children = [entry for entry in guest.processes() if entry.kind == "fork" and entry.state == "running"]
    if len(children) >= CHILDREN_MAX:
        guest.kill_device(dice.choice(children).process)
        return None
    return guest.start("fork 1 by=main")


def live_and_die(service, guest, arm, dice, tally):
    """One life, armed or to be killed at any time; the guest works, forks and loses children meanwhile."""
    service.start(failing(arm) if arm else {})
    forking = change_processes(guest, dice) if "fork" in arm or dice.random() < 0.3 else None
    if arm:
        tally.at_failpoints += order_until_death(service, dice)
    else:
        service.await_death(dice.random() * 2.0)
    tally.kills += 1
    tally.faults_in_flight += guest.status().busy_workers
    return forking


def test_killed_everywhere(bus, tmp_path):
    dice = random.Random(SEED)  # noqa: S311 - no secrets are made of it
    config = tmp_path / "vmmswap.conf"
    plain = PLAIN if dice.random() < PLAIN_SHARE else ()
    config.write_text("\n".join(["[Swap]", "FaultAround=64K", *plain, ""]))
    tally = Tally()
    points = failpoints()
    dice.shuffle(points)
    with restarted(bus, "--config", str(config)) as service:
        monitor = service.start()
        monitor.wait_on_bus()
        with Guest(REGIONS, socket=monitor.socket, workers=2, device_workers=1) as guest:
            guest.wait_ready()
            guest.fill()
            guest.fork(1)
            guest.work_start(rate=500)
            monitor.enable()
            monitor.kill()
            forks = []
            for number in range(LIVES_MAX):
                if number >= KILLS and tally.at_failpoints >= AT_FAILPOINTS:
                    break
                name = points[number % len(points)]
                arm = "" if number % 4 == 3 else f"{name}=kill@{dice.choice([0, 0, 1, 5, 20])}"
                forks.append(live_and_die(service, guest, arm, dice, tally))
                status = guest.status()
                assert status.wrong_bytes == 0, f"{arm}: {status.first_wrong} (seed {SEED})\n{monitor.log}"
                assert status.bus_errors == 0
            monitor = service.start()
            monitor.wait_on_bus()
            for fork in filter(None, forks):
                fork.wait()
            guest.wait_work(200)
            assert monitor.disable()["State"] == "Ready", monitor.log
            assert monitor.enable()["State"] == "Active", monitor.log
            guest.work_stop()
            done = guest.verify()
            status = guest.status()
            assert (done.wrong_bytes, done.lost_processes) == (0, 0), f"{done} (seed {SEED})"
            assert (status.wrong_bytes, status.bus_errors) == (0, 0)
            assert monitor.status()["Processes"] == status.processes
            assert tally.at_failpoints >= AT_FAILPOINTS, tally
            print("\n" + tally.line(status, status.verified_bytes + done.bytes))
