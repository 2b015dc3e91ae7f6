# SPDX-License-Identifier: GPL-2.0-or-later
"""Drives `vmmswap-guest`, the embedded guest: one method for each of its orders, each with a deadline.

    with Guest(regions=["64M", "32M"], socket=path) as guest:
        guest.wait_ready()
        guest.fill()
        guest.fork(2)
        guest.work_start()
        ...
        guest.work_stop()
        assert guest.verify().wrong_bytes == 0

Orders that take time are jobs: `start("verify")` returns a `Job` at once, to be waited for later; the methods
named after orders wait. Everything may be used from several threads.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.support.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0 * PATIENCE
PAGE_BYTES = 4096

Reply = dict[str, Any]
T = TypeVar("T")


class GuestError(Exception):
    """The guest refused an order, ended, or did not answer in time."""


@functools.cache
def guest_program(variant: str = "") -> Path:
    """The program, built if need be; `variant`: "", "clang", "asan", "tsan". VMMSWAP_GUEST replaces ""."""
    if not variant and (given := os.environ.get("VMMSWAP_GUEST")):
        return Path(given)
    name = f"vmmswap-guest-{variant}" if variant else "vmmswap-guest"
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with (build / ".guest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = subprocess.run(
            ["make", "-C", str(ROOT / "guest"), f"../build/{name}"],
            capture_output=True,
            text=True,
            check=False,
        )
    if made.returncode:
        raise GuestError(f"cannot build {name}:\n{made.stdout}{made.stderr}")
    return build / name


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first wrong byte of a page as a worker found it. Version 0: zeros expected, no header found."""

    page: int
    addr: int
    offset: int
    expected: int
    actual: int
    expected_version: int
    actual_version: int
    process: int
    worker: int


@dataclass(frozen=True, slots=True)
class Region:
    addr: int
    size: int
    offset: int
    memfd: int
    first_page: int


@dataclass(frozen=True, slots=True)
class Done:
    """How a job ended. `bytes` were compared, `wrong_bytes` of them wrong; `bus_errors`: SIGBUS or EFAULT."""

    command: str
    pages: int
    bytes: int
    wrong_bytes: int
    wrong_pages: int
    bus_errors: int
    longest_us: int
    took_us: int
    lost_processes: int
    first_wrong: Mismatch | None
    made: list[int]


@dataclass(frozen=True, slots=True)
class Status:
    pid: int
    pages: int
    regions: list[Region]
    memfd_fds: list[int]
    dummy_page: int
    uffd: int
    processes: int
    working: bool
    busy_workers: int
    reads: int
    writes: int
    kernel_ios: int
    verified_bytes: int
    wrong_bytes: int
    wrong_pages: int
    bus_errors: int
    longest_stall_us: int
    stuck_us: int
    stall_us_log2: list[int]
    first_wrong: Mismatch | None
    handoff: Handoff

    @property
    def operations(self) -> int:
        return self.reads + self.writes + self.kernel_ios


@dataclass(frozen=True, slots=True)
class Handoff:
    state: str  # none, connecting, registering, ready, refused, lost
    name: str
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class Process:
    process: int
    pid: int
    kind: str  # main, fork, backend
    parent: int
    state: str  # starting, running, silent, dying, dead
    reads: int
    writes: int
    kernel_ios: int
    verified_bytes: int
    wrong_bytes: int
    wrong_pages: int
    bus_errors: int
    longest_stall_us: int
    stuck_us: int


@dataclass(frozen=True, slots=True)
class Memory:
    memfds: list[int]  # bytes that the kernel holds for each memfd: st_blocks
    resident_bytes: int  # their sum
    rss_kib: int


def _mismatch(value: Reply | None) -> Mismatch | None:
    return Mismatch(**value) if value else None


def _fields(kind: type, value: Reply) -> Reply:
    return {name: value[name] for name in kind.__dataclass_fields__ if name in value}  # type: ignore[attr-defined]  # kind is a dataclass


def _done(event: Reply) -> Done:
    special = {"first_wrong": _mismatch(event["first_wrong"]), "made": event.get("made", [])}
    return Done(**(_fields(Done, event) | special))


def _status(reply: Reply) -> Status:
    special = {
        "first_wrong": _mismatch(reply["first_wrong"]),
        "regions": [Region(**region) for region in reply["regions"]],
        "handoff": Handoff(**reply["handoff"]),
    }
    return Status(**(_fields(Status, reply) | special))


class Job:
    """An order that takes time."""

    def __init__(self, guest: Guest, job_id: int, line: str) -> None:
        self._guest = guest
        self.id = job_id
        self.line = line

    def is_done(self) -> bool:
        return self._guest.job_event(self.id) is not None

    def wait(self, deadline_s: float = DEADLINE_S) -> Done:
        """How it ended; GuestError if it failed or if deadline_s pass first."""
        event = self._guest.wait_until(
            lambda: self._guest.job_event(self.id), deadline_s, f"'{self.line}' to be done"
        )
        if not event["ok"]:
            raise GuestError(self._guest.describe(f"'{self.line}' failed: {event['error']}"))
        return _done(event)


class Guest:
    """A running vmmswap-guest. Without `socket` it hands nothing over."""

    def __init__(
        self,
        regions: Sequence[str] = ("16M",),
        *,
        socket: Path | None = None,
        workers: int = 2,
        device_workers: int = 1,
        seed: int = 1,
        mix: str | None = None,
        api: str = "monitor",
        options: Sequence[str] = (),
        program: Path | None = None,
        env: dict[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.argv = [str(program or guest_program())]
        self.argv += [word for region in regions for word in ("--region", region)]
        self.argv += ["--socket", str(socket)] if socket else ["--no-handoff"]
        self.argv += ["--workers", str(workers), "--device-workers", str(device_workers), "--seed", str(seed)]
        self.argv += ["--api", api]
        self.argv += ["--mix", mix] if mix else []
        self.argv += options
        self._env = os.environ | (env or {})
        self._pass_fds = pass_fds
        self._changed = threading.Condition()
        self._replies: dict[int, Reply] = {}
        self._jobs: dict[int, Reply] = {}
        self._exits: set[int] = set()  # pids
        self._handoff = Handoff("none", "", "", "")
        self._started: Reply | None = None
        self._output_ended = False
        self._lines = 0
        self._send_lock = threading.Lock()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start_program()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_program(self) -> None:
        self.process = subprocess.Popen(
            self.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=self._env,
            pass_fds=self._pass_fds,
            bufsize=0,
        )
        self._reader = threading.Thread(target=self._read, name="guest output", daemon=True)
        self._reader.start()
        try:
            self.wait_until(lambda: self._started, DEADLINE_S, "the guest to start")
        except BaseException:
            self.close()
            raise

    def close(self, deadline_s: float = 10.0) -> None:
        """End the guest and all its processes, politely, then by SIGKILL. May be called twice."""
        process = self.process
        if process and process.stdin:
            process.stdin.close()
            try:
                process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._reader.join()
            assert process.stdout
            process.stdout.close()
        self._stderr.close()

    def kill(self) -> None:
        """SIGKILL the VMM, as a crash would. Its other processes die with it."""
        assert self.process
        self.process.kill()
        self.process.wait()

    # What the program says

    def _read(self) -> None:
        assert self.process and self.process.stdout
        buffer = b""
        while chunk := os.read(self.process.stdout.fileno(), 1 << 16):
            *lines, buffer = (buffer + chunk).split(b"\n")
            with self._changed:
                for line in lines:
                    self._take(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._output_ended = True
            self._changed.notify_all()

    def _take(self, message: Reply) -> None:
        if "reply" in message:
            self._replies[message["reply"]] = message
            return
        match message["event"]:
            case "started":
                self._started = message
            case "done":
                self._jobs[message["job"]] = message
            case "exit":
                self._exits.add(message["pid"])
            case "handoff":
                self._handoff = Handoff(**message["handoff"])

    def stderr(self) -> str:
        """What the program wrote to standard error so far."""
        if self._stderr.closed:
            return ""
        return os.pread(self._stderr.fileno(), 1 << 16, 0).decode(errors="replace")

    def describe(self, what: str) -> str:
        assert self.process
        guest = f"guest: {' '.join(self.argv)} (pid {self.process.pid})"
        return f"{what}\n  {guest}\n  stderr: {self.stderr().strip()}"

    def wait_until(self, look: Callable[[], T | None], deadline_s: float, what: str) -> T:
        """The first value other than None and False; looked for after each message of the guest."""
        end = time.monotonic() + deadline_s
        with self._changed:
            while (value := look()) is None or value is False:
                if self._output_ended:
                    raise GuestError(self.describe(f"the guest ended while we waited for {what}"))
                rest_s = end - time.monotonic()
                if rest_s <= 0:
                    raise GuestError(self.describe(f"waited {deadline_s} s in vain for {what}"))
                self._changed.wait(rest_s)
            return value

    def job_event(self, job_id: int) -> Reply | None:
        with self._changed:
            return self._jobs.get(job_id)

    # Orders

    def order(self, line: str, deadline_s: float = DEADLINE_S) -> Reply:
        """Send one order and return its reply; GuestError if it was refused."""
        assert self.process and self.process.stdin
        with self._send_lock:
            try:
                self.process.stdin.write(line.encode() + b"\n")
            except (BrokenPipeError, ValueError) as error:
                raise GuestError(self.describe(f"the guest has ended, it cannot obey '{line}'")) from error
            self._lines += 1
            number = self._lines
        reply = self.wait_until(lambda: self._replies.pop(number, None), deadline_s, f"the reply to '{line}'")
        if not reply["ok"]:
            raise GuestError(self.describe(f"'{line}' was refused: {reply['error']}"))
        return reply

    def start(self, line: str) -> Job:
        """Send an order that takes time."""
        return Job(self, self.order(line)["job"], line)

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def handoff(self) -> Handoff:
        with self._changed:
            return self._handoff

    def wait_handoff(self, *states: str, deadline_s: float = DEADLINE_S) -> Handoff:
        """Wait until the hand-off is in one of the states."""
        return self.wait_until(
            lambda: self._handoff if self._handoff.state in states else None,
            deadline_s,
            f"the hand-off to be {' or '.join(states)}",
        )

    def wait_ready(self, deadline_s: float = DEADLINE_S) -> str:
        """Wait for `ready`; the VM's name. GuestError with the monitor's message if it refused."""
        result = self.wait_handoff("ready", "refused", deadline_s=deadline_s)
        if result.state == "refused":
            raise GuestError(self.describe(f"the hand-off was refused: {result.error}: {result.message}"))
        return result.name

    def status(self) -> Status:
        return _status(self.order("status"))

    def processes(self) -> list[Process]:
        return [Process(**process) for process in self.order("processes")["processes"]]

    def threads(self) -> list[Reply]:
        threads: list[Reply] = self.order("threads")["threads"]
        return threads

    def memory(self) -> Memory:
        return Memory(**_fields(Memory, self.order("memory")))

    def reset_stats(self) -> None:
        self.order("reset-stats")

    def fill(self, first: int = 0, pages: int | None = None, deadline_s: float = DEADLINE_S) -> Done:
        return self.start(f"fill first={first}" + _pages(pages)).wait(deadline_s)

    def verify(
        self,
        first: int = 0,
        pages: int | None = None,
        *,
        by: str | int = "all",
        touched: bool = False,
        deadline_s: float = DEADLINE_S,
    ) -> Done:
        """Every process (or that of `by`) compares every byte; `touched` leaves out pages never written."""
        line = f"verify first={first} by={by} touched={int(touched)}" + _pages(pages)
        return self.start(line).wait(deadline_s)

    def work_start(self, *, rate: int = 0, writes: int = 50, kernel: int = 0) -> None:
        """rate: operations a second and worker, 0: no limit; writes, kernel: per cent of them."""
        self.order(f"work start rate={rate} writes={writes} kernel={kernel}")

    def work_stop(self, deadline_s: float = DEADLINE_S) -> None:
        """Returns when every worker rests."""
        self.start("work stop").wait(deadline_s)

    def wait_work(self, operations: int, deadline_s: float = DEADLINE_S) -> Status:
        """Until the workers have done so many more operations than now."""
        goal = self.status().operations + operations
        return self.wait_status(
            lambda status: status.operations >= goal, deadline_s, f"{operations} more operations"
        )

    def wait_status(self, condition: Callable[[Status], bool], deadline_s: float, what: str) -> Status:
        """Ask for the status until it meets the condition: counters rise without a message."""
        end = time.monotonic() + deadline_s
        while not condition(status := self.status()):
            if time.monotonic() > end:
                raise GuestError(self.describe(f"waited {deadline_s} s in vain for {what}: {status}"))
            time.sleep(0.005)
        return status

    def hot(self, pages: int, first: int = 0, stride: int = 1) -> None:
        self.order(f"hot {pages} first={first} stride={stride}")

    def touch(
        self,
        first: int,
        pages: int = 1,
        *,
        write: bool = False,
        by: str | int = "main",
        offset: int | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> Done:
        return self.start(touch_order(first, pages, write=write, by=by, offset=offset)).wait(deadline_s)

    def remove(
        self,
        first: int,
        pages: int = 1,
        how: str = "madvise",
        expect: str = "",
        *,
        by: str | int = "main",
        deadline_s: float = DEADLINE_S,
    ) -> Done:
        """how: madvise, dontneed, fallocate, balloon; expect: zeros, either, or the way's own default."""
        return self.start(f"remove {first} {pages} {how} {expect} by={by}").wait(deadline_s)

    def kernel_io(
        self,
        first: int,
        pages: int = 1,
        direction: str = "read",
        *,
        by: str | int = "main",
        deadline_s: float = DEADLINE_S,
    ) -> Done:
        """direction: read (the kernel writes guest memory) or write."""
        return self.start(f"kernel-io {first} {pages} {direction} by={by}").wait(deadline_s)

    def corrupt(self, page: int, offset: int = 0, *, by: str | int = "main") -> None:
        self.start(f"corrupt {page} offset={offset} by={by}").wait()

    def write_from_outside(self, pages: Iterable[int]) -> None:
        """Into pages of the first region's file, past every userfaultfd: what is out there is lost."""
        memfd = os.open(f"/proc/{self.pid}/fd/{self.status().memfd_fds[0]}", os.O_RDWR)
        try:
            for page in pages:
                written = os.pwrite(memfd, b"from outside".ljust(PAGE_BYTES), page * PAGE_BYTES)
                assert written == PAGE_BYTES
        finally:
            os.close(memfd)

    def fork(self, count: int = 1, *, by: str | int = "main", deadline_s: float = DEADLINE_S) -> list[int]:
        """Numbers of the new processes."""
        return self.start(f"fork {count} by={by}").wait(deadline_s).made

    def backend(self, count: int = 1, *, silent: bool = False, deadline_s: float = DEADLINE_S) -> list[int]:
        """Processes with mappings of their own. Numbers of those that run."""
        return self.start(f"backend {count}{' silent' if silent else ''}").wait(deadline_s).made

    def kill_device(self, process: int, deadline_s: float = DEADLINE_S) -> None:
        """Returns when the process is gone."""
        pid = next(entry.pid for entry in self.processes() if entry.process == process)
        self.order(f"kill-device {process}")
        self.wait_until(lambda: pid in self._exits, deadline_s, f"process {process} to end")

    def exec_device(self, process: int, deadline_s: float = DEADLINE_S) -> None:
        self.start(f"exec-device {process}").wait(deadline_s)

    def register(self) -> None:
        self.order("register")

    def disconnect(self) -> None:
        self.order("disconnect")

    def hostile(self, *words: str | int) -> None:
        """What bad VMMs do; `exec` and `exit` end the guest as we know it and are not answered."""
        line = " ".join(["hostile", *map(str, words)])
        if words[0] == "munmap":
            self.start(line).wait()
        elif words[0] in ("exec", "exit"):
            self._send_unanswered(line)
        else:
            self.order(line)

    def _send_unanswered(self, line: str) -> None:
        assert self.process and self.process.stdin
        with self._send_lock:
            self.process.stdin.write(line.encode() + b"\n")

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)


def _pages(pages: int | None) -> str:
    return "" if pages is None else f" pages={pages}"


def touch_order(
    first: int, pages: int = 1, *, write: bool = False, by: str | int = "main", offset: int | None = None
) -> str:
    """The order, for `start()`, where the test wants to look while the touch waits."""
    at = "" if offset is None else f" offset={offset}"
    return f"touch {first} {pages} {'write' if write else 'read'} by={by}{at}"
