# SPDX-License-Identifier: GPL-2.0-or-later
"""A private system bus for tests: a real dbus-daemon that denies by default, with the policy that we ship."""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import pytest

from tests.support.patience import PATIENCE

REPOSITORY = Path(__file__).resolve().parents[2]
POLICY = REPOSITORY / "dbus" / "org.vmmswap.conf"
CALL_S = 60.0 * PATIENCE

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
    absent = [tool for tool in ("dbus-daemon", "busctl", "dbus-send", "setpriv") if not shutil.which(tool)]
    return f"needs {' and '.join(absent)}" if absent else ""


class PrivateBus:
    """A dbus-daemon of the test's own. `stop` and `start` keep the address, as a restarted bus does."""

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

    async def has_owner(self, name: str) -> bool:
        """Whether somebody owns this name now."""
        bus = Client(self, "org.freedesktop.DBus", "/org/freedesktop/DBus")
        return await bus.call("org.freedesktop.DBus", "NameHasOwner", "s", name) == "b true"


@pytest.fixture
def private_bus() -> Iterator[PrivateBus]:
    if reason := missing():
        pytest.skip(reason)
    with PrivateBus() as bus:
        yield bus


@dataclass(frozen=True)
class Answer:
    """What a command-line client printed, and its exit status."""

    status: int
    output: str
    error: str

    @property
    def ok(self) -> "Answer":
        assert self.status == 0, f"exit status {self.status}: {self.error}{self.output}"
        return self


async def run(*command: str, uid: int = 0) -> Answer:
    """Run a client as this uid. The event loop goes on, so that the service under test may live in it."""
    if uid:
        command = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, error = await process.communicate()
    assert process.returncode is not None
    return Answer(process.returncode, output.decode(), error.decode())


@asynccontextmanager
async def start(bus: PrivateBus, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a program in the repository with this bus as its system bus; it is ended with the block."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, stdout=pipe, stderr=pipe, cwd=REPOSITORY, env=bus.environment
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


class Client:
    """Command-line clients of one object: busctl, and dbus-send because it prints the names of errors."""

    def __init__(self, bus: PrivateBus, destination: str, path: str) -> None:
        self._bus = bus
        self.destination = destination
        self.path = path

    def at(self, path: str) -> "Client":
        return Client(self._bus, self.destination, path)

    async def busctl(self, verb: str, *arguments: str, uid: int = 0) -> Answer:
        options = [f"--address={self._bus.address}", f"--timeout={CALL_S:.0f}"]
        return await run("busctl", *options, verb, self.destination, self.path, *arguments, uid=uid)

    async def call(self, interface: str, member: str, *arguments: str, uid: int = 0) -> str:
        """The reply in busctl's words; AssertionError if it is an error."""
        return (await self.busctl("call", interface, member, *arguments, uid=uid)).ok.output.strip()

    async def json(self, interface: str, member: str, *arguments: str, uid: int = 0) -> list[Any]:
        """The reply's values, as busctl's --json gives them."""
        answer = await self.busctl("call", "--json=short", interface, member, *arguments, uid=uid)
        return cast(list[Any], json.loads(answer.ok.output)["data"])

    async def get(self, interface: str, *names: str, uid: int = 0) -> list[str]:
        answer = await self.busctl("get-property", interface, *names, uid=uid)
        return answer.ok.output.splitlines()

    async def error(self, member: str, *arguments: str, uid: int = 0) -> tuple[str, str]:
        """The name and the text of the error that the call of INTERFACE.MEMBER ends with."""
        answer = await run(
            "dbus-send",
            f"--bus={self._bus.address}",
            "--print-reply",
            f"--reply-timeout={CALL_S * 1000:.0f}",
            f"--dest={self.destination}",
            self.path,
            member,
            *arguments,
            uid=uid,
        )
        assert answer.status != 0, answer.output
        name, _, text = answer.error.strip().removeprefix("Error ").partition(": ")
        return name, text


class Signals:
    """Messages as `busctl monitor` sees them, which is not our own client."""

    def __init__(self, bus: PrivateBus, *matches: str) -> None:
        self._command = ["busctl", f"--address={bus.address}", "--json=short"]
        self._command += [f"--match={match}" for match in matches]

    async def __aenter__(self) -> "Signals":
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._command, "monitor", stdout=pipe, stderr=pipe
        )
        assert self._process.stderr
        assert b"Monitoring" in await self._process.stderr.readline()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        await self._process.communicate()

    async def next(self, *members: str) -> dict[str, Any]:
        """The next signal that has one of these members."""
        assert self._process.stdout
        async with asyncio.timeout(20):
            while True:
                message = json.loads(await self._process.stdout.readline())
                if message.get("type") == "signal" and message.get("member") in members:
                    return cast(dict[str, Any], message)


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 20) -> None:
    """Ask again until it is so."""
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.01)
