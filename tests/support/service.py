# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap as an operator installs it: `make install` in a booted machine, its guests units in there."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import installation
from tests.support.guest import Guest, GuestError
from tests.support.machine import Machine, MachineError
from vmmswap.names import MANAGER_INTERFACE, bus_name_of, object_path_of

GUEST_PROGRAM = "/usr/libexec/vmmswap/vmmswap-guest"


class GuestInside(Guest):
    """The installed guest program, run as a unit of the machine. Its pids are the machine's."""

    def __init__(
        self, machine: Machine, unit: str, argv: Sequence[str], user: str | None = None, **options: Any
    ) -> None:
        super().__init__(program=Path(GUEST_PROGRAM), **options)
        self.unit = unit
        self._machine = machine
        # The environment is ours, and may name a bus that does not exist in there.
        clean = ["env", "-u", "DBUS_SYSTEM_BUS_ADDRESS"]
        self.argv = clean + machine.unit_command(
            [*argv, *self.argv], ["--wait", "--pipe", f"--unit={unit}"], user, ()
        )

    def kill(self) -> None:
        self._machine.run("systemctl", "kill", "--signal=KILL", self.unit)
        assert self.process
        self.process.wait()


class Service:
    """What an operator sees of one installed vmmswap."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    @contextmanager
    def guest(self, name: str, regions: Sequence[str] = ("32M",), **options: Any) -> Iterator[GuestInside]:
        """A VM whose memory was written and handed over. At the end it is gone, and so is its monitor."""
        self.machine.run("systemctl", "start", f"vmmswap@{name}.socket")
        guest = GuestInside(
            self.machine,
            f"guest-{name}.service",
            (),
            regions=regions,
            socket=Path(f"/run/vmmswap/{name}.sock"),
            **options,
        )
        with guest:
            try:
                assert guest.wait_ready() == name
            except GuestError as error:
                raise GuestError(f"{error}\n{self.log(name)}") from error
            guest.fill()
            yield guest
        self.wait_unit(name, "inactive")
        self.machine.run("systemctl", "stop", f"vmmswap@{name}.socket")

    def wait_unit(self, name: str, state: str) -> dict[str, str]:
        """Until the monitor's unit is in this state; its properties."""
        unit = f"vmmswap@{name}.service"
        names = ("ActiveState", "SubState", "Result", "MainPID", "NRestarts", "ExecMainStatus", "StatusText")

        def look() -> dict[str, str] | None:
            shown = self.machine.unit(unit, *names)
            return shown if shown["ActiveState"] == state else None

        return self.machine.wait_for(f"{unit} to be {state}", look)

    def log(self, name: str, *, lines: int = 30) -> str:
        """The last lines that the monitor and systemd logged about it."""
        return self.machine.run("journalctl", f"--unit=vmmswap@{name}.service", f"--lines={lines}").stdout

    def pid(self, name: str) -> int:
        return int(self.machine.unit(f"vmmswap@{name}.service", "MainPID")["MainPID"])

    def manager(self, name: str, member: str, *, user: str | None = None, direct: bool = True) -> Any:
        """Call a method of org.vmmswap.Manager on the monitor, or through vmmswapd."""
        destination = bus_name_of(name) if direct else "org.vmmswap"
        return self.machine.call(destination, object_path_of(name), MANAGER_INTERFACE, member, user=user)

    def status(self, name: str, *, direct: bool = True) -> dict[str, Any]:
        (values,) = self.manager(name, "Status", direct=direct)
        return {key: value["data"] for key, value in values.items()}

    def wait_state(self, name: str, state: str) -> dict[str, Any]:
        """Until the VM is in this state and nothing is under way; its status. Failed fails at once."""

        def look() -> dict[str, Any] | None:
            try:
                found = self.status(name)
            except MachineError:
                return None  # a successor serves the guest before it is on the bus
            assert found["State"] in (state, "InProgress", "Ready", "Active"), found
            return found if found["State"] == state and not found["Operation"] else None

        return self.machine.wait_for(f"{name} to be {state}", look)

    def swap_out(self, name: str) -> dict[str, Any]:
        self.manager(name, "Enable")
        return self.wait_state(name, "Active")

    def swap_in(self, name: str) -> dict[str, Any]:
        self.manager(name, "Disable")
        return self.wait_state(name, "Ready")

    def drop_in(self, name: str, *lines: str, kind: str = "service") -> None:
        """Settings of one monitor's unit, for this test only: use a VM name of its own. kind: or "socket"."""
        directory = self.machine.path(f"/etc/systemd/system/vmmswap@{name}.{kind}.d")
        directory.mkdir()
        settings = "".join(f"{line}\n" for line in lines)
        (directory / "test.conf").write_text(f"[{kind.title()}]\n{settings}")
        self.machine.run("systemctl", "daemon-reload")

    def dbus_send(self, name: str, member: str, user: str) -> str:
        """The outcome as another user sees it: "" or the error's name and text."""
        command = ["dbus-send", "--system", "--print-reply", f"--dest={bus_name_of(name)}"]
        command += [object_path_of(name), f"{MANAGER_INTERFACE}.{member}"]
        done = self.machine.sh(shlex.join(command), user=user, check=False)
        return done.stderr.strip().removeprefix("Error ") if done.returncode else ""


def install(machine: Machine) -> Service:
    installation.make_inside(machine, "install")
    return Service(machine)
