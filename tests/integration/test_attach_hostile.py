# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM that lies while it is attached to: what is checked is what is used."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.blocking_files import FuseFile
from vmmswap.attach import memory
from vmmswap.attach.fd_table import fd_links, fds_of_inode
from vmmswap.attach.target import look_at
from vmmswap.errors import NotSupportedError
from vmmswap.linux.owned import OwnedFds

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the monitor does")

SIZE_BYTES = memory.MIN_BYTES
PLAIN = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
# Maps shared memory of its own; at a line, the file that it was given instead, at the same place.
FLIPPING = """
import ctypes, mmap, os, sys
fd, size = int(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
own = os.memfd_create("guest")
os.ftruncate(own, size)
addr = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, own, 0)
os.close(own)
print(addr, flush=True)
sys.stdin.readline()
libc.mmap(addr, size, mmap.PROT_READ, mmap.MAP_SHARED | 0x10, fd, 0)
print("flipped", flush=True)
sys.stdin.readline()
"""


class Flipping:
    def __init__(self, fd: int) -> None:
        self.process = subprocess.Popen(
            [*PLAIN, sys.executable, "-c", FLIPPING, str(fd), str(SIZE_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[fd],
            text=True,
        )
        assert self.process.stdout
        self.addr = int(self.process.stdout.readline())

    def flip(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "flipped\n"


@contextmanager
def flipping(fd: int) -> Iterator[Flipping]:
    running = Flipping(fd)
    with running.process as process:
        try:
            yield running
        finally:
            process.kill()


@contextmanager
def flipping_to(file: FuseFile) -> Iterator[Flipping]:
    with flipping(file.fd) as vmm:
        file.silence()
        try:
            yield vmm
        finally:
            file.end()


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_vmm_that_flips_its_memory_between_two_looks(
    monkeypatch: pytest.MonkeyPatch, by_hand: bool
) -> None:
    """Root's file, which the VMM may only read, is not opened for writing in its name."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as roots:
        os.truncate(roots.name, SIZE_BYTES)
        Path(roots.name).chmod(0o644)
        readable = os.open(roots.name, os.O_RDONLY)
        with OwnedFds([readable]), flipping(readable) as vmm:
            take = memory._take

            def flip_first(*arguments):
                monkeypatch.setattr(memory, "_take", take)
                vmm.flip()
                return take(*arguments)

            monkeypatch.setattr(memory, "_take", flip_first)
            spans = [(vmm.addr, vmm.addr + SIZE_BYTES)] if by_hand else []
            with OwnedFds([os.pidfd_open(vmm.process.pid)]) as pidfd:
                with pytest.raises(NotSupportedError, match="holds no fd of it"):
                    memory.find(look_at(pidfd[0]), spans)
                with pytest.raises(NotSupportedError, match="not readable and writable"):
                    memory.find(look_at(pidfd[0]), [(vmm.addr, vmm.addr + SIZE_BYTES)])


def test_a_vmms_files_are_not_asked_about_nor_closed(tmp_path: Path) -> None:
    """A FUSE server of its own would answer when it likes, and whoever waits for it cannot be killed."""
    if reason := FuseFile.missing():
        pytest.skip(reason)
    with FuseFile(tmp_path) as file, flipping_to(file) as vmm:
        vmm.flip()
        with OwnedFds([os.pidfd_open(vmm.process.pid)]) as pidfd:
            target = look_at(pidfd[0])
            links = list(fd_links(target))
            assert list(fds_of_inode(target, file.inode)) == []
            with pytest.raises(NotSupportedError):
                memory.find(target)
        assert f"{tmp_path}/file" in [link for _, link in links]
        assert file.requests_so_far() == []


def test_without_the_vmms_uid_fds_of_a_server_are_left_alone(tmp_path: Path) -> None:
    """Where /proc/PID/fd is closed to the monitor, as in its unit."""
    if reason := FuseFile.missing():
        pytest.skip(reason)
    code = """
import os
from vmmswap.attach.fd_table import fd_links
from vmmswap.attach.target import look_at
print([link for _, link in fd_links(look_at(os.pidfd_open(int(input()))))])
"""
    looking = subprocess.Popen(  # before there is a file that its fork would have to close
        ["setpriv", "--bounding-set=-all,+sys_ptrace", sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with looking, FuseFile(tmp_path) as file, flipping_to(file) as vmm:
        links, _ = looking.communicate(f"{vmm.process.pid}\n", timeout=60)
        assert looking.returncode == 0
        assert links != "[]\n"  # its standard error at least
        assert str(tmp_path) not in links
        assert file.requests_so_far() == []
