# SPDX-License-Identifier: GPL-2.0-or-later
"""A real systemd, system bus and journal for tests: a container over a throw-away overlay of the host's root.

    with Machine() as machine:
        machine.sh("systemctl start vmmswap@a.socket")
        entries = machine.journal(VMMSWAP_VM="a")

All files of the host's root file system, and this source tree, are visible inside; what is written
there is gone at the end. /tmp, /run, /dev/shm and /etc/systemd/system are fresh. There is no network unless
asked for. Needs root, systemd-nspawn and a mounted cgroup2 hierarchy; `Machine.missing()` says what is
not there.
"""

import dataclasses
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.support import machine_keeper

KEEPER = Path(machine_keeper.__file__)
ROOT = KEEPER.parents[2]
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
POLL_INTERVAL_S = 0.05
_serial = itertools.count()
T = TypeVar("T")


class MachineError(Exception):
    """The machine did not boot, or a command in it failed; the message has the output."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the keeper needs to know. `binds` map a path inside to a path of the host (not under /run)."""

    name: str
    binds: Mapping[str, str]
    binds_ro: Mapping[str, str]
    network: bool
    boot_timeout_s: float


def _is_hidden_inside(path: Path) -> bool:
    """Whether a machine, an overlay of the root file system alone, has something else there."""
    fresh = any(path.is_relative_to(folder) for folder in ("/tmp", "/run", "/dev"))
    return fresh or path.stat().st_dev != Path("/").stat().st_dev


class Machine:
    """One booted machine. Commands run as root, as real units with a cgroup of their own."""

    leader: int  # the PID, in the host's numbering, of its PID 1

    def __init__(
        self,
        *,
        binds: Mapping[str, str] | None = None,
        binds_ro: Mapping[str, str] | None = None,
        network: bool = False,
        boot_timeout_s: float = 120,
    ) -> None:
        name = f"vmmswap-machine-{os.getpid()}-{next(_serial)}"
        read_only = {str(ROOT): str(ROOT)} if _is_hidden_inside(ROOT) else {}
        read_only |= binds_ro or {}
        self.settings = Settings(name, binds or {}, read_only, network, boot_timeout_s)
        self._units = itertools.count()
        self._keeper: subprocess.Popen[str] | None = None

    @staticmethod
    def missing() -> str | None:
        """Why no machine can be booted here, or None if one can."""
        if os.geteuid() != 0:
            return "booting a machine needs root"
        for program in ("systemd-nspawn", "nsenter", "unshare", "setpriv", "mount"):
            if shutil.which(program) is None:
                return f"booting a machine needs {program}, which is not installed"
        if not machine_keeper.cgroup_roots():
            return "booting a machine needs a mounted cgroup2 hierarchy"
        return None

    def start(self) -> None:
        command = ["unshare", "--mount", "--propagation=private", "--", sys.executable, "-I", str(KEEPER)]
        self._keeper = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._keeper.stdin is not None and self._keeper.stdout is not None
        try:
            self._keeper.stdin.write(json.dumps(dataclasses.asdict(self.settings)) + "\n")
            self._keeper.stdin.flush()
            reply = json.loads(self._keeper.stdout.readline() or '{"error": "its keeper died"}')
            if "leader" not in reply:
                raise MachineError(f"the machine did not boot: {reply['error']}")
        except BaseException:
            self.close()
            raise
        self.leader = reply["leader"]

    def close(self) -> None:
        """End it and wait until nothing of it is left. Harmless when it is not running."""
        if self._keeper is None:
            return
        keeper, self._keeper = self._keeper, None
        rest, _ = keeper.communicate()  # closes its standard input, which is what it waits for
        if keeper.returncode != 0 and rest:
            raise MachineError(f"the machine was not taken down cleanly: {rest}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def path(self, path: str) -> Path:
        """Where the host sees a file of the machine. Absolute symbolic links lead to the host's files."""
        return Path(f"/proc/{self.leader}/root") / path.lstrip("/")

    def written(self) -> Path:
        """The overlay's upper directory, as seen from here: all that was written over the host's files."""
        assert self._keeper is not None
        return Path(f"/proc/{self._keeper.pid}/root") / machine_keeper.UPPER.relative_to("/")

    def enter(self, *argv: str) -> list[str]:
        """The command line, for the host, that runs argv inside. For tools: it stays in our cgroup."""
        return ["nsenter", "--target", str(self.leader), "--all", "--", *argv]

    def run(self, *argv: str, check: bool = True, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a tool inside, not as a unit."""
        return _run(self.enter(*argv), check=check, timeout_s=timeout_s)

    def unit_command(
        self, argv: Sequence[str], options: Sequence[str], user: str | None, properties: Sequence[str]
    ) -> list[str]:
        extra = [f"--property={setting}" for setting in properties]
        if user is not None:
            extra.append(f"--uid={user}")
        return self.enter("systemd-run", "--quiet", "--collect", *options, *extra, "--", *argv)

    def sh(
        self,
        command: str,
        *,
        user: str | None = None,
        properties: Sequence[str] = (),
        stdin: str | None = None,
        check: bool = True,
        timeout_s: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a bash command as a transient unit; MachineError if it fails and `check` is set."""
        argv = self.unit_command(["/bin/bash", "-c", command], ["--wait", "--pipe"], user, properties)
        return _run(argv, stdin=stdin, check=check, timeout_s=timeout_s)

    def popen(
        self,
        command: str,
        *,
        unit: str | None = None,
        user: str | None = None,
        properties: Sequence[str] = (),
        **options: Any,
    ) -> "subprocess.Popen[str]":
        """Start a bash command as a transient unit, its standard streams those of the Popen (`options`).

        A signal to the Popen does not reach the command: stop its unit.
        """
        unit_options = ["--wait", "--pipe", f"--unit={unit or self._next_unit()}"]
        argv = self.unit_command(["/bin/bash", "-c", command], unit_options, user, properties)
        return subprocess.Popen(argv, env=ENVIRONMENT, text=True, start_new_session=True, **options)

    def spawn(
        self,
        command: str,
        *,
        unit: str | None = None,
        user: str | None = None,
        properties: Sequence[str] = (),
    ) -> str:
        """Start a bash command in the background, its output in the journal; its transient unit's name."""
        unit = unit or self._next_unit()
        options = [f"--unit={unit}", "--service-type=exec"]
        _run(self.unit_command(["/bin/bash", "-c", command], options, user, properties))
        return unit

    def _next_unit(self) -> str:
        return f"test-{next(self._units)}.service"

    def unit(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit, as `systemctl show` prints them."""
        shown = self.run("systemctl", "show", f"--property={','.join(names)}", unit).stdout
        return dict(line.split("=", 1) for line in shown.splitlines())

    def journal(self, *options: str, **match: str) -> list[dict[str, Any]]:
        """All entries whose fields have these values, oldest first; `options` are journalctl's."""
        self.run("journalctl", "--sync")
        fields = [f"{field}={value}" for field, value in match.items()]
        output = self.run("journalctl", "--output=json", "--all", "--quiet", *options, *fields).stdout
        return [json.loads(line) for line in output.splitlines()]

    def busctl(
        self, *args: str, user: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run busctl on the machine's system bus, as root or as another user."""
        command = ["busctl", "--system", *args]
        if user is not None:
            return self.sh(shlex.join(command), user=user, check=check)
        return self.run(*command, check=check)

    def call(self, *args: str, user: str | None = None) -> Any:
        """busctl call DESTINATION PATH INTERFACE METHOD [SIGNATURE ARG...]: the reply's data, if any."""
        output = self.busctl("--json=short", "call", *args, user=user).stdout
        return json.loads(output)["data"] if output.strip() else None

    def wait_for(self, what: str, condition: Callable[[], T | None], timeout_s: float = 120) -> T:
        """The first true value of the condition; MachineError naming `what` if none comes in good time."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise MachineError(f"waited {timeout_s} s in vain for {what}")
            time.sleep(POLL_INTERVAL_S)
        return value


def _run(
    argv: Sequence[str], *, stdin: str | None = None, check: bool = True, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    done = subprocess.run(
        argv, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=timeout_s, **source
    )
    if check and done.returncode != 0:
        raise MachineError(
            f"{shlex.join(argv)}: exit status {done.returncode}\nstdout: {done.stdout}\nstderr: {done.stderr}"
        )
    return done
