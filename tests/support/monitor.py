# SPDX-License-Identifier: GPL-2.0-or-later
"""A vmmswap-monitor of the test's own, driven over a private bus by busctl.

with Monitor("web", bus, directory) as monitor, Guest(socket=monitor.socket) as guest:
    guest.wait_ready()
    monitor.call("Enable")
    assert monitor.settled()["State"] == "Active"
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.bus import PrivateBus
from tests.support.patience import PATIENCE
from vmmswap.names import MANAGER_INTERFACE, bus_name_of, object_path_of

DEADLINE_S = 60.0 * PATIENCE
ENABLES_MAX = 5
PLAIN = ("RamTierMax=0", "DiskTierCompression=none", "Encryption=no")  # no tiers: a plain swap file
CONFIG = Path(__file__).with_name("monitor.conf")
PROGRAM = (sys.executable, "-m", "vmmswap.monitor.main")


class BusError(Exception):
    """A call ended with an error; `name` as far as busctl tells it, in its words otherwise."""


class Monitor:
    """The running program. Leaving the `with` block kills it if it has not ended."""

    def __init__(
        self,
        name: str,
        bus: PrivateBus,
        directory: Path,
        *options: str,
        env: Mapping[str, str] | None = None,
        listen: bool = True,
        program: Sequence[str] = PROGRAM,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.bus = bus
        self.directory = directory
        self.socket = directory / "socket"
        self.argv = [*program, name, "--swap-dir", str(directory), "--log-dir", str(directory)]
        self.argv += ["--config", str(CONFIG)] if "--config" not in options else []
        self.argv += ["--bus", bus.address, *options]
        if listen:
            self.argv += ["--listen", str(self.socket)]
        self._env = os.environ | (env or {})
        self._pass_fds = pass_fds
        self._log = directory / "monitor.log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        self.wait_on_bus()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill_keepers()
        self.kill()

    def _kill_keepers(self) -> None:
        """They would go on in its place: it has no service manager, and its VMM may be the test."""
        if self.process is None or self.process.poll() is not None:
            return
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for child in map(int, children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                pass_fds=self._pass_fds,
            )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.check_engine()

    def check_engine(self) -> None:
        """An engine with failpoints checks all that it knows when it stops or takes over."""
        if self._log.exists():
            assert "\nbug: " not in "\n" + self.log, f"the engine found a bug of its own:\n{self.log}"

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_exit(self, deadline_s: float = DEADLINE_S) -> int:
        assert self.process
        try:
            status = self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the monitor goes on:\n{self.log}") from None
        self.check_engine()
        return status

    def wait_on_bus(self) -> None:
        """Until the VM's object answers, which is when a VMM can connect too."""
        end = time.monotonic() + DEADLINE_S
        while True:
            try:
                self.status()
            except BusError:
                assert self.process and self.process.poll() is None, f"the monitor has ended:\n{self.log}"
                assert time.monotonic() < end, f"the monitor is not on the bus:\n{self.log}"
                time.sleep(0.01)
            else:
                return

    def wait_log(self, text: str, deadline_s: float = DEADLINE_S) -> None:
        self.until(lambda: text in self.log, f"{text!r} in the log", deadline_s)

    def until(self, condition: Any, what: str, deadline_s: float = DEADLINE_S) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}:\n{self.log}"
            time.sleep(0.005)

    # The bus

    def call_command(self, member: str) -> list[str]:
        command = ["busctl", f"--address={self.bus.address}", f"--timeout={DEADLINE_S:.0f}"]
        command += ["--json=short", "call"]
        return [*command, bus_name_of(self.name), object_path_of(self.name), MANAGER_INTERFACE, member]

    def call(self, member: str) -> Any:
        """The reply's first value, or None. BusError with the error's text."""
        answer = subprocess.run(self.call_command(member), capture_output=True, text=True, check=False)
        if answer.returncode:
            raise BusError(answer.stderr.strip())
        return json.loads(answer.stdout)["data"][0] if answer.stdout.strip() else None

    def error_of(self, member: str) -> str:
        """The name of the error that a call ends with, without its prefix: busctl does not print it."""
        command = [
            "dbus-send",
            f"--bus={self.bus.address}",
            "--print-reply",
            f"--dest={bus_name_of(self.name)}",
        ]
        command += [object_path_of(self.name), f"{MANAGER_INTERFACE}.{member}"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        assert answer.returncode, f"{member} succeeded"
        return answer.stderr.removeprefix("Error ").partition(":")[0].removeprefix("org.vmmswap.Error.")

    def status(self) -> dict[str, Any]:
        return {key: value["data"] for key, value in self.call("Status").items()}

    def settled(self, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
        """The status once no operation runs."""
        end = time.monotonic() + deadline_s
        while (status := self.status())["Operation"]:
            assert time.monotonic() < end, f"an operation goes on for ever: {status}\n{self.log}"
            time.sleep(0.005)
        return status

    def enable(self) -> dict[str, Any]:
        self.call("Enable")
        return self.settled()

    def all_out(self) -> dict[str, Any]:
        """Enable leaves nothing on RAM; again, if the kernel held a page just then (reclaim, compaction)."""
        for _ in range(ENABLES_MAX):
            status = self.enable()
            assert (status["State"], status["Error"]) == ("Active", ""), self.log
            if not status["ResidentPages"]:
                return status
        raise AssertionError(f"pages stay on RAM: {status}\n{self.log}")

    def disable(self) -> dict[str, Any]:
        self.call("Disable")
        return self.settled()
