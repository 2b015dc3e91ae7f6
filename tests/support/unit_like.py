# SPDX-License-Identifier: GPL-2.0-or-later
"""A monitor that gets its socket and its directories from the environment, as from its unit, and from its
command line NAME alone.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from tests.support.bus import PrivateBus
from tests.support.monitor import Monitor

# LISTEN_PID= has to be the monitor's own, which the shell's is until exec.
_AS_SYSTEMD = 'fd=$1; shift; exec env LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=listen "$@" 3<&"$fd"'


class UnitLike(Monitor):
    """python_options: for the interpreter."""

    def __init__(self, name: str, bus: PrivateBus, directory: Path, *python_options: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        environment = {
            "DBUS_SYSTEM_BUS_ADDRESS": bus.address,
            "STATE_DIRECTORY": str(directory),
            "LOGS_DIRECTORY": str(directory),
        }
        super().__init__(name, bus, directory, env=environment, pass_fds=[self._listener.fileno()])
        monitor = [sys.executable, *python_options, "-m", "vmmswap.monitor.main", "--", name]
        self.argv = ["bash", "-c", _AS_SYSTEMD, "bash", str(self._listener.fileno()), *monitor]

    def start(self) -> None:
        self._listener.bind(str(self.socket))
        self._listener.listen()
        super().start()

    def kill(self) -> None:
        super().kill()
        self._listener.close()
