# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that wakes up finds back what it needed before: by an order, by its page faults, after a crash."""

import pytest

from tests.support.bus import missing
from tests.support.guest import Guest
from tests.support.monitor import BusError
from tests.support.restarts import failing, restarted

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

REGIONS = ("16M", "8M")
SET = 1000  # pages that the guest touches when it wakes up
WAKES_MAX = 20  # on a busy machine, page faults may come too slowly for a wake-up


NOISE = 100  # pages that an idle guest touches


def configured(running, tmp_path, text):
    config = tmp_path / "vmmswap.conf"
    config.write_text(f"[Swap]\n{text}\n")
    running._options = ("--config", str(config))


@pytest.fixture
def life(bus, tmp_path):
    with restarted(bus) as running:
        # page faults that come too slowly for a wake-up are those of an idle guest
        configured(running, tmp_path, "IdleSetMax=0\nFaultAround=0")
        monitor = running.start()
        monitor.wait_on_bus()
        with Guest(REGIONS, socket=monitor.socket) as guest:
            guest.wait_ready()
            guest.fill()
            yield running, guest


def learn(monitor, guest):
    """All out, with a set that is known. Returns its pages."""
    monitor.enable()
    monitor.call("Wake")
    assert guest.touch(0, SET).wrong_bytes == 0
    monitor.wait_log("the guest has woken up")
    status = monitor.enable()
    assert SET // 2 < status["WakeSetPages"] <= SET
    assert status["PrefetchedPages"] == 0
    return status["WakeSetPages"]


def all_ahead(monitor, pages):
    monitor.until(lambda: monitor.status()["PrefetchedPages"] >= pages, "the set to come back")


def check_all_right(guest):
    done = guest.verify()
    assert (done.wrong_bytes, done.lost_processes) == (0, 0), done


def test_by_an_order(life):
    (running, guest) = life
    monitor = running.monitor
    monitor.call("Wake")  # nothing is out, and nothing happens
    pages = learn(monitor, guest)
    monitor.call("Wake")
    all_ahead(monitor, pages)
    status = monitor.status()
    assert (status["State"], status["PrefetchedPages"], status["CopiedPages"]) == ("Active", pages, 0)
    guest.touch(0, SET)
    assert monitor.status()["CopiedPages"] == 0
    kept = monitor.status()["KeptPages"]
    assert 0 < kept <= pages  # those of zeros have no copy
    written = monitor.status()["WrittenBytes"]
    status = monitor.enable()
    assert (status["KeptPages"], status["WrittenBytes"]) == (0, written)
    monitor.call("Disable")
    monitor.call("Wake")  # all is coming back already
    monitor.settled()
    check_all_right(guest)


def test_by_its_page_faults(life):
    (running, guest) = life
    monitor = running.monitor
    pages = learn(monitor, guest)
    for _ in range(WAKES_MAX):
        guest.touch(0, SET)
        if monitor.status()["PrefetchedPages"]:
            break
        monitor.enable()
    monitor.until(lambda: monitor.log.count("the guest has woken up") > 1, "the wake-up to be in the log")
    status = monitor.status()
    assert 0 < status["PrefetchedPages"] <= pages
    assert status["WakeTimeMs"] > 0
    check_all_right(guest)


def test_refused_during_a_swap_out(life):
    (running, guest) = life
    running.monitor.kill()
    monitor = running.start(failing("evict.checked=sleep:20"))
    monitor.wait_on_bus()
    monitor.call("Enable")
    with pytest.raises(BusError, match="a swap-out is under way: wake when it is done"):
        monitor.call("Wake")
    monitor.call("Disable")
    monitor.settled()
    check_all_right(guest)


def test_killed_in_the_middle(life):
    (running, guest) = life
    pages = learn(running.monitor, guest)
    running.monitor.kill()
    monitor = running.start(failing("replay.step=kill@10"))
    monitor.wait_on_bus()
    monitor.call("Wake")
    running.await_death()
    monitor = running.start()
    monitor.wait_on_bus()
    # PrefetchedPages lacks what the dead one had put back and not counted yet.
    monitor.until(lambda: monitor.status()["ResidentPages"] >= pages, "the set to come back")
    assert monitor.status()["WakeSetPages"] == pages
    check_all_right(guest)


def test_not_by_itself(life, tmp_path):
    (running, guest) = life
    pages = learn(running.monitor, guest)
    running.monitor.kill()
    configured(running, tmp_path, "WakePrefetch=no\nIdleSetMax=0\nFaultAround=0")
    monitor = running.start()
    monitor.wait_on_bus()
    for _ in range(3):
        guest.touch(0, SET)
        assert monitor.status()["PrefetchedPages"] == 0
        monitor.enable()
    monitor.call("Wake")
    all_ahead(monitor, pages // 2)
    check_all_right(guest)


def faults_while_idle(monitor, guest):
    """All out, and the guest touches the same pages again. How many page faults that took."""
    before = monitor.enable()["FaultCount"]
    assert guest.touch(0, NOISE).wrong_bytes == 0
    return monitor.status()["FaultCount"] - before


def test_what_an_idle_guest_touches_stays(life, tmp_path):
    (running, guest) = life
    running.monitor.kill()
    configured(running, tmp_path, "IdleSetMax=1M\nFaultAround=0")
    monitor = running.start()
    monitor.wait_on_bus()
    before = [faults_while_idle(monitor, guest) for _ in range(2)]
    after = [faults_while_idle(monitor, guest) for _ in range(4)]
    assert min(before) > NOISE // 2 > max(after), (before, after)
    status = monitor.enable()
    stay = status["IdleSetPages"]
    assert 0 < stay <= NOISE
    assert status["ResidentPages"] == stay
    monitor.call("Trim")
    assert monitor.settled()["ResidentPages"] == stay
    running.monitor.kill()
    monitor = running.start()  # a successor knows them
    monitor.wait_on_bus()
    assert monitor.status()["IdleSetPages"] == stay
    assert faults_while_idle(monitor, guest) < NOISE // 2
    monitor.call("Disable")
    assert monitor.settled()["IdleSetPages"] == 0
    check_all_right(guest)


def test_neighbours_come_with_page_faults(life, tmp_path):
    """A first wake-up, of which nothing is known: the guest reads all of its memory in its order."""
    (running, guest) = life
    running.monitor.kill()
    configured(running, tmp_path, "FaultAround=64K")
    monitor = running.start()
    monitor.wait_on_bus()
    before = monitor.enable()
    assert before["WakeSetPages"] == 0
    monitor.call("Wake")
    check_all_right(guest)
    status = monitor.status()
    assert status["PrefetchedPages"] > 0
    assert status["FaultCount"] - before["FaultCount"] < before["SwapPages"]
    monitor.enable()
    check_all_right(guest)
