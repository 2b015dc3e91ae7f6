# SPDX-License-Identifier: GPL-2.0-or-later
"""A private system bus for tests: a real dbus-daemon that denies by default, with the policy that we ship."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
POLICY = REPOSITORY / "dbus" / "org.vmmswap.conf"

# The rules are those of Debian's system.conf; the includes are the shipped policy and what a test adds.
_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <auth>EXTERNAL</auth>
  <listen>unix:path={directory}/bus</listen>
  <servicedir>{directory}/services</servicedir>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Introspectable"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Properties"/>
  </policy>
  <policy user="root">
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Monitoring"/>
  </policy>
  {includes}
</busconfig>
"""


def missing() -> str:
    """Why there can be no private bus here, or ""."""
    if os.geteuid() != 0:
        return "needs root: only root may own the names on a system bus"
    absent = [tool for tool in ("dbus-daemon", "busctl", "setpriv") if not shutil.which(tool)]
    return f"needs {' and '.join(absent)}" if absent else ""


class PrivateBus:
    """A dbus-daemon of the test's own. `stop` and `start` keep the address, as a restarted system bus does."""

    def __init__(self, policies: Sequence[Path] = (POLICY,)) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="vmmswap-bus-"))
        self.directory.chmod(0o755)
        (self.directory / "services").mkdir()
        self.address = f"unix:path={self.directory}/bus"
        self._config = self.directory / "bus.conf"
        includes = "\n  ".join(f"<include>{path}</include>" for path in policies)
        self._config.write_text(_CONFIG.format(directory=self.directory, includes=includes))
        self._daemon: subprocess.Popen[str] | None = None

    def __enter__(self) -> "PrivateBus":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    def start(self) -> None:
        command = ["dbus-daemon", f"--config-file={self._config}", "--nofork", "--nopidfile", "--nosyslog"]
        log = self.directory / "dbus-daemon.log"
        with log.open("w") as stderr:
            self._daemon = subprocess.Popen(
                [*command, "--print-address=1"], stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        assert self._daemon.stdout
        assert self._daemon.stdout.readline(), f"dbus-daemon did not start: {log.read_text()}"

    def stop(self) -> None:
        """End the daemon by its pid; every connection ends with it."""
        daemon, self._daemon = self._daemon, None
        if daemon:
            daemon.kill()
            daemon.communicate()

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with this bus as the system bus."""
        return {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": self.address}


@pytest.fixture
def private_bus() -> Iterator[PrivateBus]:
    if reason := missing():
        pytest.skip(reason)
    with PrivateBus() as bus:
        yield bus
