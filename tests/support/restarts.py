# SPDX-License-Identifier: GPL-2.0-or-later
"""Monitors that are killed and go on: started again with what they stored, or by their keeper."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.bus import PrivateBus
from tests.support.monitor import DEADLINE_S, PROGRAM, Monitor
from tests.support.notify import ServiceManager

WITH_FAILPOINTS = {"VMMSWAP_ENGINE": "failpoints"}


def failing(text: str) -> dict[str, str]:
    """The environment of a monitor with failpoints armed."""
    return WITH_FAILPOINTS | {"VMMSWAP_FAILPOINTS": text}


class Restarted:
    """A monitor under a service manager that keeps its fds; the test starts each life."""

    def __init__(self, bus: PrivateBus, directory: Path, manager: ServiceManager, *options: str) -> None:
        """options: further ones of the program."""
        self.manager = manager
        self._bus = bus
        self._directory = directory
        self._options = options
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "socket"))
        self._listener.listen()
        self.monitor = self.prepare({})

    def prepare(self, env: Mapping[str, str]) -> Monitor:
        program, fds = self.manager.program(*PROGRAM, listener=self._listener)
        return Monitor(
            "web",
            self._bus,
            self._directory,
            "--debug",
            *self._options,
            program=program,
            env=self.manager.environment | WITH_FAILPOINTS | env,
            listen=False,
            pass_fds=fds,
        )

    def start(self, env: Mapping[str, str] | None = None) -> Monitor:
        """The next life. It may be over before this returns, if a failpoint is armed."""
        self.monitor = self.prepare(env or {})
        self.monitor.start()
        return self.monitor

    def await_death(self, deadline_s: float = DEADLINE_S) -> bool:
        """Whether it died by itself; if not, it is killed. Its keeper has done its work then, as a service
        manager waits for that too.
        """
        assert self.monitor.process
        end = time.monotonic() + deadline_s
        while (died := self.monitor.process.poll() is not None) is False and time.monotonic() < end:
            time.sleep(0.002)
        self.monitor.kill()
        for pid in keepers(self.monitor):
            wait_gone(pid)
        return died

    def close(self) -> None:
        self.monitor.kill()
        self._listener.close()


@contextmanager
def restarted(bus: PrivateBus, *options: str) -> Iterator[Restarted]:
    """options: further ones of the program."""
    directory = Path(tempfile.mkdtemp(prefix="vmmswap-"))
    with ServiceManager(directory) as manager:
        running = Restarted(bus, directory, manager, *options)
        try:
            yield running
        finally:
            running.close()
    shutil.rmtree(directory)


@contextmanager
def on_its_own(bus: PrivateBus, env: Mapping[str, str], *options: str) -> Iterator[Monitor]:
    """A monitor without a service manager: its keepers go on in its place. All are gone afterwards.
    options: further ones of the program.
    """
    directory = Path(tempfile.mkdtemp(prefix="vmmswap-"))
    without = {"NOTIFY_SOCKET": "", "FDSTORE": "0"}
    monitor = Monitor("web", bus, directory, "--debug", *options, env=without | WITH_FAILPOINTS | env)
    monitor.start()
    try:
        yield monitor
    finally:
        while living := [pid for pid in [monitor.pid, *keepers(monitor)] if is_alive(monitor, pid)]:
            for pid in reversed(living):  # the last keeper first: it has none itself, and starts nothing
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        monitor.kill()
    shutil.rmtree(directory)


def keepers(monitor: Monitor) -> list[int]:
    """All that the monitor's lives have told of, oldest first; those of successors by keeper are among
    them.
    """
    return [int(pid) for pid in re.findall(r"the keeper is process (\d+)", monitor.log)]


def is_alive(monitor: Monitor, pid: int) -> bool:
    """Whether the process still is one of this monitor's: pids are used again."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return str(monitor.directory).encode() in command


def wait_gone(pid: int, deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while _has_memory(pid):
        assert time.monotonic() < end, f"process {pid} goes on"
        time.sleep(0.002)


def memfds_of(pid: int, name: str) -> set[int]:
    """Inodes of the memfds of that name that a process keeps open."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if f"memfd:{name}" in str(path.readlink()):
                found.add(path.stat().st_ino)
    return found


def _has_memory(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:  # reaped before it was opened, or before it was read
        return False
