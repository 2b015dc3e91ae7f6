# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's own kernels of other versions, booted over this machine's root file system.

    result = run("6.1", "uname -r; engine/build/gcc/test_pins", limit_s=600)
    assert result.status == 0, result.output

A job is a script for bash. It runs as root, in this source tree, and what it writes is gone with the kernel:
/var/tmp, its TMPDIR, is on a disk, all else in memory.
Nothing of the kernel is this machine's: a job may change any setting.
By hand: python -m tests.kernels [--limit SECONDS] VERSION COMMAND.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.guests import qemu

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "build" / "kernels"
VERSIONS = ("6.1", "6.12")  # of Debian 12 and 13; both are in the archives of Debian 12
DISK_BYTES = 4 << 30  # sparse
_NO_SUCH_KERNEL = 3
_BOOTS = 3
_ENDED = re.compile(r"^job ended with status (\d+)\s*$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Result:
    """status None: the job did not come to its end. output: of the job; console: of the kernel."""

    status: int | None
    output: str
    console: str
    took_s: float

    def __str__(self) -> str:
        if self.status is None:
            return f"the job did not end:\n{self.output[-4000:]}\nconsole:\n{self.console[-3000:]}"
        return f"status {self.status}:\n{self.output[-8000:]}"


def missing() -> str:
    """Why no kernel can be booted here, or ""."""
    if os.geteuid() != 0:
        return "needs root: the booted kernel has this machine's root file system"
    if os.uname().machine != "x86_64":
        return "kernels are fetched for x86-64 only"
    tools = ("qemu-system-x86_64", "busybox", "cpio", "apt-get", "dpkg", "xz", "mkfs.ext4")
    absent = [tool for tool in tools if not shutil.which(tool)]
    return f"needs {' and '.join(absent)}" if absent else ""


def prepare(version: str) -> str:
    """Fetch the kernel. Returns why this machine cannot have it, or "". RuntimeError if fetching failed."""
    made = subprocess.run(
        [str(Path(__file__).with_name("prepare")), version], capture_output=True, text=True, check=False
    )
    if made.returncode == _NO_SUCH_KERNEL:
        return made.stderr.strip().splitlines()[-1]
    if made.returncode:
        raise RuntimeError(f"tests/kernels/prepare {version}: {made.stderr.strip()[-500:]}")
    return ""


def run(
    version: str,
    script: str,
    *,
    limit_s: float,
    memory_mib: int = 3072,
    boot: str = "",
    hear: Callable[[str], None] | None = None,
) -> Result:
    """Boot a prepared kernel, run a job and turn the machine off.

    boot: further words for the kernel. hear: is given each line of the job's output as it ends.

    A kernel that panics before its job has begun is booted again: where QEMU emulates several processors, one
    of them runs into an instruction that the kernel is just patching (int3 in the console) now and then.
    """
    for _ in range(_BOOTS):
        result = _run_once(version, script, limit_s=limit_s, memory_mib=memory_mib, boot=boot, hear=hear)
        if result.status is not None or result.output or "Kernel panic" not in result.console:
            break
    return result


def _run_once(
    version: str,
    script: str,
    *,
    limit_s: float,
    memory_mib: int,
    boot: str,
    hear: Callable[[str], None] | None,
) -> Result:
    folder = KERNELS / version
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="run-", dir=folder) as directory:
        here = Path(directory)
        job = here / "job"
        job.write_text(script)
        console, output, disk = here / "console", here / "output", here / "disk"
        _make_disk(disk)
        accel = qemu.accelerator()[0]
        words = f"console=ttyS0 panic=-1 quiet tree={ROOT} job={job} {boot}"
        command = [
            *("qemu-system-x86_64", "-accel", accel, "-cpu", "host" if accel == "kvm" else "max"),
            *("-machine", "pc", "-m", f"{memory_mib}M", "-smp", "2", "-nodefaults", "-no-reboot"),
            *("-display", "none", "-kernel", str(folder / "vmlinuz"), "-initrd", str(folder / "initrd.gz")),
            *("-append", words, "-serial", f"file:{console}", "-serial", f"file:{output}"),
            *("-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
            *("-drive", f"file={disk},format=raw,if=none,id=disk,cache=unsafe"),
            *("-device", "virtio-blk-pci,drive=disk"),
        ]
        said = _run_bounded(command, limit_s, _Lines(output, hear))
        text = output.read_text(errors="replace") if output.exists() else ""
        booted = console.read_text(errors="replace") if console.exists() else ""
    ended = _ENDED.search(text)
    status = int(ended[1]) if ended else None
    took_s = time.monotonic() - start_s
    return Result(status, _ENDED.sub("", text).replace("\r", ""), booted + said, took_s)


def _make_disk(path: Path) -> None:
    """Not in memory: a store's files on tmpfs are read at once, and count as the VM's memory."""
    with path.open("wb") as disk:
        disk.truncate(DISK_BYTES)
    mkfs = ["mkfs.ext4", "-q", "-F", "-N", "65536", "-E", "lazy_itable_init=0", str(path)]
    subprocess.run(mkfs, check=True)


class _Lines:
    """The lines of a file that grows, each once."""

    def __init__(self, path: Path, hear: Callable[[str], None] | None) -> None:
        self._path = path
        self._hear = hear
        self._heard_bytes = 0

    def read(self) -> None:
        if not self._hear or not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._heard_bytes)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._heard_bytes += len(whole + newline)
        for line in whole.decode(errors="replace").splitlines():
            if not _ENDED.match(line):
                self._hear(line)


def _run_bounded(command: list[str], limit_s: float, lines: _Lines) -> str:
    """Run QEMU; what it said, and that it was ended by force."""
    end_s = time.monotonic() + limit_s
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said) as machine,
    ):
        try:
            while machine.poll() is None and time.monotonic() < end_s:
                lines.read()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    machine.wait(0.5)
            forced = machine.poll() is None
        finally:
            machine.kill()
        machine.wait()
        lines.read()
        said.seek(0)
        return said.read() + (f"\nended by force after {limit_s:.0f} s" if forced else "")
