# SPDX-License-Identifier: GPL-2.0-or-later
"""What the fd store takes when a VMM forks without end, and while the service manager is busy."""

import configparser
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.notify import ServiceManager
from vmmswap.errors import InternalError
from vmmswap.monitor.keep import fdstore
from vmmswap.monitor.keep.fdstore import FdStore
from vmmswap.notify import Notifier

UNIT = Path(__file__).parents[2] / "systemd" / "vmmswap@.service"


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notifier]:
    with ServiceManager(tmp_path) as other_end:
        monkeypatch.setenv("NOTIFY_SOCKET", str(other_end.path))
        notifier = Notifier()
        yield notifier
        notifier.close()


def filled(manager: Notifier) -> tuple[FdStore, int]:
    """With as many forked children as there is room for, and how many that are."""
    store = FdStore(manager)
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        for key in range(fdstore._UNITS_MAX):
            try:
                store.add(fdstore.uffd_name(key), null)
            except InternalError as error:
                assert "raise FileDescriptorStoreMax=" in error.message
                return store, key
    finally:
        os.close(null)
    raise AssertionError("a store without an end")


def test_forked_children_leave_room_for_memory(manager: Notifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its limit systemd closes what it gets: a memfd lost so is memory lost at the monitor's end."""
    monkeypatch.setenv("FDSTORE", "200")
    store, children = filled(manager)
    assert children == 200 - fdstore._RESERVE
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        for number in range(fdstore._RESERVE):
            store.add(fdstore.memfd_name(number), null)
        with pytest.raises(InternalError, match="memfd-1000 cannot be kept"):
            store.add(fdstore.memfd_name(1000), null)
        store.remove(fdstore.memfd_name(0))
        store.add(fdstore.memfd_name(1000), null)
    finally:
        os.close(null)


def test_a_store_that_finds_no_room_is_refused(manager: Notifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what helps: no child has taken its place."""
    monkeypatch.setenv("FDSTORE", "2")
    store = FdStore(manager)
    with Path("/dev/null").open() as null:
        store.add(fdstore.TIERS[0], null.fileno())
        store.add(fdstore.TIERS[1], null.fileno())
        with pytest.raises(InternalError, match=r"store-disk .* keeps 2 fds.* raise \w+=$"):
            store.add(fdstore.TIERS[2], null.fileno())


def test_the_limit_is_the_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where systemd does not tell (before 254)."""
    monkeypatch.delenv("FDSTORE", raising=False)
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)
    assert fdstore._room() == int(unit["Service"]["FileDescriptorStoreMax"])


def test_what_another_thread_sends_meanwhile_is_not_unsent_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A successor that serves asks for time on a thread, which sends what waits and closes its fds. A keeper
    that learns of that too early takes another file for the one that it has to store.
    """
    done = []

    class Keeper:
        def keep(self, _name: str, _fd: int, *, unsent: int) -> None:
            assert unsent >= 0
            for _ in iter(receive, b""):
                pass
            thread.start()
            thread.join(0.5)  # for ever, if the other thread has to wait for us
            os.fstat(unsent)
            done.append("kept")

        def stored(self, _name: str) -> None:
            done.append("stored")

    def receive() -> bytes:
        try:
            return receiver.recv(4096)
        except BlockingIOError:
            return b""

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        manager = Notifier()
        thread = threading.Thread(target=manager.notify, args=("WATCHDOG=1",))
        while not manager.notify("STATUS=busy", latest="STATUS").is_waiting:
            pass
        store = FdStore(manager, Keeper())  # type: ignore[arg-type]
        store.add("uffd-1", receiver.fileno())
        thread.join()
        assert done == ["kept", "stored"]
        manager.close()
