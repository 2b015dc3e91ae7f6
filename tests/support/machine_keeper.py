# SPDX-License-Identifier: GPL-2.0-or-later
"""Boots one throw-away systemd and ends it when standard input does; see machine.py, which runs this.

A process of its own, because whatever becomes of the tests (an assertion, Ctrl-C, SIGKILL), the end of
their pipe is seen here and everything is taken down. It runs in a private mount namespace (`unshare --mount`)
with a tmpfs over /run that holds all its files, so that no mount and no file has to be undone: they vanish
with the last process. What is left to remove are the cgroups.

    stdin:  one line of JSON, the settings (machine.Settings); then nothing until its end
    stdout: one line of JSON, {"leader": PID} or {"error": TEXT}
"""

import contextlib
import json
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORK = Path("/run/vmmswap-machine")
UPPER = WORK / "upper"
TARGET = "vmmswap-test.target"
TARGET_UNIT = """\
[Unit]
Description=Boot of a test of vmmswap
Requires=basic.target dbus.socket dbus.service
After=basic.target dbus.service
AllowIsolate=yes
"""


class KeeperError(Exception):
    pass


def mount(*args: str) -> None:
    done = subprocess.run(["mount", *args], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise KeeperError(f"mount {' '.join(args)}: {done.stderr.strip()}")


def prepare_root() -> None:
    mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/run")
    WORK.mkdir()
    # Not nspawn's --volatile=overlay: that makes a directory in the host's /tmp, and killed leaves it there.
    for directory in (UPPER, WORK / "work", WORK / "root"):
        directory.mkdir()
    layers = f"lowerdir=/,upperdir={UPPER},workdir={WORK / 'work'}"
    mount("-t", "overlay", "-o", layers, "overlay", str(WORK / "root"))
    units = WORK / "units"
    units.mkdir()
    (units / TARGET).write_text(TARGET_UNIT)


def prepare_userfaultfd() -> list[str]:
    """A device node of our own, so that a chown or chmod inside the machine does not reach the host's."""
    try:
        host = Path("/dev/userfaultfd").stat()
    except FileNotFoundError:  # before Linux 6.1
        return []
    node = WORK / "userfaultfd"
    os.mknod(node, stat.S_IFCHR | 0o600, host.st_rdev)
    node.chmod(0o600)
    return [f"--bind={node}:/dev/userfaultfd"]


def cgroup_roots() -> list[Path]:
    """The hierarchies that systemd uses: cgroup2, and where controllers are on v1, the one named systemd."""
    roots = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, source = line.partition(" - ")
        fstype, _, options = source.split(" ", 2)
        if fstype == "cgroup2" or (fstype == "cgroup" and "name=systemd" in options):
            roots.append(Path(fields.split()[4]))
    return roots


@contextlib.contextmanager
def cgroups(name: str) -> Iterator[list[Path]]:
    """A cgroup of the machine's own in each hierarchy, else nspawn puts its groups into the root."""
    groups = [root / name for root in cgroup_roots()]
    made: list[Path] = []
    try:
        for group in groups:
            group.mkdir()
            made.append(group)
        yield made
    finally:
        for group in made:
            empty_cgroup(group)
        for group in made:
            remove_cgroup(group)


def empty_cgroup(group: Path) -> None:
    """Kill what is in the group and wait for its end. The v1 hierarchy holds the same processes."""
    events = group / "cgroup.events"
    if not events.exists():
        return
    with contextlib.suppress(FileNotFoundError):  # before Linux 5.14 the kill of nspawn has to be enough
        (group / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + 60
    with events.open() as file:
        poll = select.poll()
        poll.register(file, select.POLLPRI)
        while "populated 1" in file.read():
            poll.poll(max(0, (deadline - time.monotonic()) * 1000))
            if time.monotonic() > deadline:
                raise KeeperError(f"{group} still has processes 60 s after they were killed")
            file.seek(0)


def remove_cgroup(group: Path) -> None:
    for directory, _, _ in os.walk(group, topdown=False):
        Path(directory).rmdir()


def nspawn_command(settings: dict[str, Any], binds: list[str]) -> list[str]:
    return [
        # Should this process be killed, nspawn halts the machine by itself.
        *("setpriv", "--pdeathsig=TERM"),
        *("systemd-nspawn", "--boot", f"--directory={WORK / 'root'}"),
        *(f"--machine={settings['name']}", "--register=no", "--keep-unit", "--link-journal=no"),
        *("--console=pipe", "--notify-ready=yes", "--capability=all"),
        # bpf: or systemd's DevicePolicy= is silently not enforced. @debug: pidfd_getfd.
        "--system-call-filter=@debug bpf",
        # Ours in place of the host's: its own services stay off, and `systemctl enable` can write.
        f"--bind={WORK / 'units'}:/etc/systemd/system",
        *([] if settings["network"] else ["--private-network"]),
        *binds,
        *(f"--bind={source}:{target}" for target, source in settings["binds"].items()),
        *(f"--bind-ro={source}:{target}" for target, source in settings["binds_ro"].items()),
        *(f"systemd.unit={TARGET}", "systemd.show_status=0"),
    ]


def start_nspawn(command: list[str], groups: list[Path]) -> "subprocess.Popen[bytes]":
    def enter_cgroups() -> None:
        for group in groups:
            (group / "cgroup.procs").write_text("0")

    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "NOTIFY_SOCKET": str(WORK / "notify"),
        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
    }
    with (WORK / "console").open("wb") as console:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            preexec_fn=enter_cgroups,  # noqa: PLW1509 - this process has one thread
        )


def await_ready(nspawn: "subprocess.Popen[bytes]", notify: socket.socket, timeout_s: float) -> int:
    """The PID, out here, of the machine's PID 1, once that says that it has booted."""
    leader = 0
    deadline = time.monotonic() + timeout_s
    ended = os.pidfd_open(nspawn.pid)
    try:
        while True:
            ready, _, _ = select.select([notify, ended, sys.stdin], [], [], deadline - time.monotonic())
            if not ready:
                raise KeeperError(f"not booted after {timeout_s} s")
            if sys.stdin in ready:
                raise KeeperError("told to stop while booting")
            if notify not in ready:
                raise KeeperError(f"systemd-nspawn ended with status {nspawn.wait()}")
            message = notify.recv(4096).decode()
            if match := re.search(r"^X_NSPAWN_LEADER_PID=(\d+)$", message, re.MULTILINE):
                leader = int(match[1])
            if re.search(r"^READY=1$", message, re.MULTILINE):
                return leader
    finally:
        os.close(ended)


def answer(**fields: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody reads: the tests are gone, the end follows at once
        print(json.dumps(fields), flush=True)


def keep(settings: dict[str, Any]) -> None:
    prepare_root()
    binds = prepare_userfaultfd()
    with cgroups(settings["name"]) as groups, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(WORK / "notify"))
        nspawn = start_nspawn(nspawn_command(settings, binds), groups)
        try:
            leader = await_ready(nspawn, notify, settings["boot_timeout_s"])
            answer(leader=leader)
            ended = os.pidfd_open(nspawn.pid)
            select.select([sys.stdin, ended], [], [])
        except KeeperError as error:
            console = (WORK / "console").read_text(errors="replace")[-4000:]
            raise KeeperError(f"{error}; its console said:\n{console}") from error
        finally:
            nspawn.kill()  # its child, the machine's PID 1, goes with it, and so does that pid namespace
            nspawn.wait()


def stop(signum: int, _frame: object) -> None:
    sys.exit(128 + signum)


def main() -> None:
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(signum, stop)
    # Unbuffered by hand: select() on sys.stdin must not miss bytes that a buffer holds.
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return
        line += byte
    try:
        keep(json.loads(line))
    except (KeeperError, OSError) as error:
        answer(error=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
