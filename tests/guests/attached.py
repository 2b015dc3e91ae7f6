# SPDX-License-Identifier: GPL-2.0-or-later
"""A monitor with an fd store that attaches to a QEMU, and what every test of that looks at."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.guests.qemu import Qemu
from tests.support.bus import PrivateBus
from tests.support.monitor import PROGRAM, Monitor
from tests.support.notify import ServiceManager
from vmmswap.handoff.client import VmmClient

MIB = 1 << 20
UFFD = "anon_inode:[userfaultfd]"


class Service:
    """A monitor with an fd store, and its successors."""

    def __init__(
        self, bus: PrivateBus, directory: Path, manager: ServiceManager, listener: socket.socket
    ) -> None:
        self._bus, self._directory, self._manager, self._listener = bus, directory, manager, listener
        self.monitor = self.start()

    def start(self, *options: str, env: dict[str, str] | None = None) -> Monitor:
        program, fds = self._manager.program(*PROGRAM, listener=self._listener)
        self.monitor = Monitor(
            "web",
            self._bus,
            self._directory,
            *options,
            program=program,
            env=self._manager.environment | (env or {}),
            listen=False,
            pass_fds=fds,
        )
        self.monitor.start()
        self.monitor.wait_on_bus()
        return self.monitor

    def attach(self, pid: int, **options: Any) -> str:
        """As vmmswapd does."""
        pidfd = os.pidfd_open(pid)
        try:
            with VmmClient.connect(self._listener.getsockname()) as client:
                return client.attach(pidfd, **options)
        finally:
            os.close(pidfd)

    def detach(self) -> None:
        self.monitor.call("Detach")
        assert self.monitor.wait_exit() == 0, self.monitor.log


@contextmanager
def attaching(bus: PrivateBus, directory: Path) -> Iterator[Service]:
    """A monitor that waits for a VMM to attach to."""
    with ServiceManager(directory) as manager, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
        listener.listen()
        running = Service(bus, directory, manager, listener)
        yield running
        running.monitor.kill()


def enabled(monitor: Monitor) -> dict[str, Any]:
    """Swap out; the memory is gone by the kernel's count."""
    status = monitor.enable()
    assert status["State"] == "Active", (status, monitor.log)
    assert status["SwapPages"] > 0
    return status


def check_guest(vm: Qemu) -> None:
    assert vm.order("check").wrong == 0
    done = vm.order("replay")
    assert (done.wrong, done.writes > 0) == (0, True)
    vm.order("scribble on")


def wait_blocks(monitor: Monitor, vm: Qemu) -> None:
    """Until each disk has given some blocks more."""
    wanted = vm.order("disk on").least + 4
    monitor.until(lambda: vm.order("disk on").least >= wanted, f"{wanted} blocks of each disk")
