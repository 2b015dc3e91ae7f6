# SPDX-License-Identifier: GPL-2.0-or-later
"""An unmodified QEMU with the distribution's own kernel, and workload.c in it.

with Qemu(directory) as vm:
    vm.order("fill 64")
    assert vm.order("check").wrong == 0
    vm.qmp("balloon", value=256 << 20)
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self

from tests.guests.console import ORDER_S, Console
from vmmswap.attach.planting import check_machine
from vmmswap.errors import VmmswapError
from vmmswap.linux.maps import anonymous_kib_of_mappings

ROOT = Path(__file__).resolve().parents[2]
KERNEL_DIR = ROOT / "build" / "guest-kernel"
# no_timer_check: on a busy host an emulated timer may be too late for the kernel's liking, and it panics.
KERNEL_OPTIONS = "console=ttyS0 panic=-1 quiet no_timer_check"
BOOT_S = 180.0
KVM_PROBE_S = 15.0
READY = b"workload ready"


def missing() -> str:
    """Why there can be no QEMU guest here, or ""."""
    if os.geteuid() != 0:
        return "needs root: it traces QEMU"
    if os.uname().machine != "x86_64":
        return "the guest's kernel is for x86-64"
    tools = ("qemu-system-x86_64", "busybox", "cpio", "gcc", "apt-get", "dpkg")
    absent = [tool for tool in tools if not shutil.which(tool)]
    return f"needs {' and '.join(absent)}" if absent else ""


@functools.cache
def cannot_move() -> str:
    """Why private memory cannot be taken out here, or ""."""
    try:
        check_machine()
    except VmmswapError as error:
        return error.message
    return ""


@functools.cache
def prepared() -> str:
    """Make kernel and RAM disk; why that failed, or ""."""
    made = subprocess.run(
        [str(Path(__file__).with_name("prepare"))], capture_output=True, text=True, check=False
    )
    return "" if made.returncode == 0 else f"tests/guests/prepare: {made.stderr.strip()[-300:]}"


@functools.cache
def accelerator() -> tuple[str, str]:
    """kvm if a guest gets to its workload with it, else tcg; and why."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg", "there is no usable /dev/kvm"
    with tempfile.TemporaryDirectory(prefix="vmmswap-kvm-") as directory:
        try:
            with Qemu(Path(directory), memory_mib=256, accel="kvm", boot_s=KVM_PROBE_S):
                return "kvm", "a guest boots with it"
        except (AssertionError, OSError) as error:
            return "tcg", f"no guest boots with kvm here: {' '.join(str(error).split())[:300]}"


def wait_set_up(path: Path) -> None:
    """Until the QEMU that listens there for QMP has all that its command line says: it listens first."""
    end_s = time.monotonic() + BOOT_S
    while True:
        with socket.socket(socket.AF_UNIX) as sock:
            if sock.connect_ex(str(path)) == 0:
                qmp(sock, "query-status")
                return
        assert time.monotonic() < end_s, f"nobody listens on {path}"
        time.sleep(0.01)  # it is bound first


def qmp(sock: socket.socket, command: str, **arguments: Any) -> Any:
    """The first command on a connection; what it returns."""
    with sock.makefile("rw") as stream:
        assert "QMP" in json.loads(stream.readline())
        for message in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
            stream.write(json.dumps(message) + "\n")
            stream.flush()
            reply = {}
            while "return" not in reply:
                reply = json.loads(stream.readline())
                assert "error" not in reply, reply
        return reply["return"]


class Qemu:
    """The running VMM. Leaving the `with` block kills it."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        memory_mib: int = 512,
        accel: str = "",
        prefix: Sequence[str] = (),
        boot_s: float = BOOT_S,
        wait_ready: bool = True,
        memory_fd: int | None = None,
        default_memory: bool = False,
    ) -> None:
        """memory_fd: guest memory is this file, another QEMU's too perhaps; it stays the caller's.
        default_memory: QEMU is told nothing of it but its size.
        """
        self.directory = directory
        self.memory_bytes = memory_mib << 20
        self._boot_s = boot_s
        self._wait_ready = wait_ready  # False: it goes on from a snapshot
        self._pass_fds = () if memory_fd is None else (memory_fd,)
        size = f"size={memory_mib}M,share=on"
        memory = (
            f"memory-backend-memfd,id=mem,{size}"
            if memory_fd is None
            else f"memory-backend-file,id=mem,mem-path=/proc/self/fd/{memory_fd},{size}"
        )
        told = (
            ("-machine", "pc") if default_memory else ("-object", memory, "-machine", "pc,memory-backend=mem")
        )
        self._serial_path, self.qmp_path = directory / "serial.sock", directory / "qmp.sock"
        self._log_path = directory / "qemu.log"
        accel = accel or accelerator()[0]
        self.argv = [
            *prefix,
            *("qemu-system-x86_64", "-accel", accel, "-cpu", "host" if accel == "kvm" else "max"),
            *("-m", f"{memory_mib}M", "-smp", "2"),
            *told,
            *("-nodefaults", "-no-user-config"),
            *("-display", "none", "-no-reboot"),
            *("-chardev", f"socket,id=serial,path={self._serial_path},server=on,wait=off"),
            *("-serial", "chardev:serial", "-qmp", f"unix:{self.qmp_path},server=on,wait=off"),
            *("-device", "virtio-balloon-pci,id=balloon,free-page-reporting=on"),
            *("-kernel", str(KERNEL_DIR / "vmlinuz"), "-initrd", str(KERNEL_DIR / "initrd.gz")),
            *("-append", f"{KERNEL_OPTIONS} memhp_default_state=online_movable"),
            *options,
        ]

    def __enter__(self) -> Self:
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=self._pass_fds
            )
        try:
            self._console = Console(self._connect(self._serial_path), self._why_it_ended)
            if self._wait_ready:
                self._console.read_to(READY, self._boot_s)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self.process.kill()
        self.process.wait()
        if hasattr(self, "_console"):
            self._console.close()

    def _connect(self, path: Path) -> socket.socket:
        end = time.monotonic() + self._boot_s
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(str(path))
            except OSError:
                sock.close()
                self._check_alive()
                assert time.monotonic() < end, f"QEMU does not listen on {path}"
                time.sleep(0.01)
            else:
                return sock

    def _check_alive(self) -> None:
        assert self.process.poll() is None, f"QEMU has ended:\n{self._log_path.read_text()}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, order: str) -> None:
        """Give an order without waiting for its answer."""
        self._console.send(order)

    def answer(self, order: str, deadline_s: float = ORDER_S) -> SimpleNamespace:
        """The answer to an order that was sent: its numbers by name."""
        return self._console.answer(order, deadline_s)

    def order(self, order: str, deadline_s: float = ORDER_S) -> SimpleNamespace:
        return self._console.order(order, deadline_s)

    def _why_it_ended(self) -> str:
        self.process.wait()
        return self._log_path.read_text()

    def qmp(self, command: str, **arguments: Any) -> Any:
        """One command on a connection of its own; what it returns."""
        with self._connect(self.qmp_path) as sock:
            return qmp(sock, command, **arguments)

    def wait_off(self) -> int:
        """QEMU's return code after the guest has powered off."""
        return self.process.wait(ORDER_S)

    def resident_bytes(self) -> int:
        """Guest memory that is allocated, by the kernel's count: of the memfd's blocks, or of the mapping."""
        for path in Path(f"/proc/{self.pid}/fd").iterdir():
            if "memfd:memory-backend-memfd" in str(path.readlink()):
                return path.stat().st_blocks * 512
        return max(
            kib << 10
            for mapping, kib in anonymous_kib_of_mappings(self.pid)
            if mapping.size_bytes == self.memory_bytes
        )

    @property
    def fds(self) -> list[str]:
        return sorted(str(path.readlink()) for path in Path(f"/proc/{self.pid}/fd").iterdir())

    @property
    def shared_mappings(self) -> list[str]:
        """Guest memory and what else is mapped shared; private memory comes and goes."""
        lines = Path(f"/proc/{self.pid}/maps").read_text().splitlines()
        return [line for line in lines if line.split()[1][3] == "s"]
