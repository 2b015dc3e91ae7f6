# SPDX-License-Identifier: GPL-2.0-or-later
"""For tests of the hand-off: guest memory, other processes that map it, a handler that records."""

from __future__ import annotations

import array
import asyncio
import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.support.guest_memory import map_guest_memory
from vmmswap.handoff.client import DummyPage, VmmClient, open_userfaultfd
from vmmswap.handoff.messages import encode
from vmmswap.handoff.receiver import Limits
from vmmswap.handoff.region import PAGE_SIZE, Region
from vmmswap.handoff.server import HandoffServer
from vmmswap.linux import userfaultfd
from vmmswap.linux.userfaultfd import open_user_mode_only

MAPPER = Path(__file__).with_name("memory_mapper.py")


def open_fds() -> dict[int, str]:
    """All fds of this process and what they are."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the directory's own
            found[int(path.name)] = str(path.readlink())
    return found


def further_limits(process):
    """What limits a process beside what this kernel lacks, as it does POISON before Linux 6.6."""
    lacks = userfaultfd.WANTED & ~userfaultfd.kernel_features()
    return [limit for limit in process.limits if limit.partition(":")[0] not in {one.name for one in lacks}]


class GuestMemory:
    """A memfd mapped in this process, with a uffd and a dummy page. A context manager."""

    def __init__(self, pages=64, used_pages=4, name="guest"):
        self.size_bytes = pages * PAGE_SIZE
        self.memfd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.memfd, self.size_bytes)
        self.map = map_guest_memory(self.memfd, self.size_bytes)
        self._view = ctypes.c_char.from_buffer(self.map)
        self.addr = ctypes.addressof(self._view)
        self.map[: used_pages * PAGE_SIZE] = b"\xa5" * (used_pages * PAGE_SIZE)
        self.uffd = open_userfaultfd()
        self.dummy = DummyPage()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.uffd)
        self.dummy.close()
        del self._view
        self.map.close()
        os.close(self.memfd)

    @property
    def region(self):
        return Region(self.addr, self.size_bytes, 0, 0)

    @property
    def used_blocks(self):
        return os.fstat(self.memfd).st_blocks

    def renew_uffd(self, user_mode_only=False):
        os.close(self.uffd)
        self.uffd = open_user_mode_only() if user_mode_only else open_userfaultfd()


class Mapper:
    """Another process that maps a memfd: its uffd, pidfd and addresses. A context manager."""

    def __init__(self, memfd, size_bytes, *arguments, inherit=()):
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, str(MAPPER), str(theirs.fileno()), str(memfd), str(size_bytes), *arguments],
                pass_fds=[theirs.fileno(), memfd, *inherit],
            )
        self._socket = ours
        data, control, _, _ = ours.recvmsg(1000, socket.CMSG_SPACE(4))
        told = json.loads(data)
        self.addr, self.dummy_page = told["addr"], told["dummy_page"]
        (self.uffd,) = array.array("i", control[0][2])
        self.pidfd = os.pidfd_open(self.process.pid)
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()
        os.close(self.pidfd)
        os.close(self.uffd)

    def end(self):
        self._socket.close()
        self.process.kill()
        self.process.wait()


class RecordingHandler:
    """A HandoffHandler that keeps what it is told, and refuses or waits if told to."""

    name = "web"

    def __init__(self):
        self.requests = []
        self.messages = []
        self.kept = []
        self.lost = asyncio.Queue()
        self.refuse_with = None
        self.gate = None
        self.entered = asyncio.Event()
        self.keeps = False

    async def _handle(self, request):
        self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.refuse_with is not None:
            raise self.refuse_with
        self.requests.append(request)
        if self.keeps:
            self.kept.extend(request.fds.release())

    def check_peer(self, _peer):
        pass

    def occupant(self):
        return "7 (vmm)" if self.requests else ""

    @contextlib.asynccontextmanager
    async def keeping(self, frame):
        self.messages.append(frame.data)
        yield

    register = register_firecracker = add_process = add_region = attach = _handle

    def served_pid(self, _uffd):
        return None

    async def remove_region(self, request):
        self.requests.append(request)

    async def connection_lost(self, error):
        await self.lost.put(error)


def send(sock, data, fds=()):
    """One sendmsg of all the data, with its fds."""
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return sock.sendmsg([data], control)


async def replies(sock):
    """All that comes until the end of the connection, as JSON values."""
    sock.setblocking(False)
    data = b""
    while True:
        try:
            piece = await asyncio.get_running_loop().sock_recv(sock, 65536)
        except ConnectionResetError:
            break
        if not piece:
            break
        data += piece
    return [json.loads(line) for line in data.splitlines()]


@contextlib.asynccontextmanager
async def serving(handler, path=None, **limits):
    """A server; yields a function that gives a connected socket, over `path` if given."""
    server = HandoffServer(handler, Limits(**limits))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path) if path else "")  # else an abstract name of the kernel's choice
    listener.listen()
    task = asyncio.create_task(server.serve(listener))
    await asyncio.sleep(0)  # let it prepare the listener
    sockets = contextlib.ExitStack()

    def connect():
        sock = sockets.enter_context(socket.socket(socket.AF_UNIX))
        sock.connect(listener.getsockname())
        return sock

    try:
        yield connect
    finally:
        task.cancel()
        await asyncio.wait([task])
        await server.close()
        sockets.close()
        listener.close()


async def refused(connect, data, sent_fds=()):
    """Send one message, expect one error reply and the connection's end; return the error."""
    sock = connect()
    await asyncio.to_thread(send, sock, data, sent_fds)
    (reply,) = await replies(sock)
    assert reply["type"] == "error"
    return reply["error"].rpartition(".")[2], reply["message"]


def register_message(guest, **more):
    return encode("register", [guest.region], **more)


async def register(connect, guest, **more):
    client = VmmClient(connect())
    name = await asyncio.to_thread(
        client.register, [guest.region], [guest.memfd], guest.uffd, dummy_page=guest.dummy.addr, **more
    )
    return client, name
