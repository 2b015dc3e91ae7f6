# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM and its back-end, as two users: foreign_back_end.py vmm HAND-OFF-SOCKET PATH | back-end PATH

The back-end maps the memory that the VMM sends it over PATH, and gives it its userfaultfd; the VMM adds it.
SIGUSR1 has the back-end print the digest of what it reads.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import signal
import socket
import sys

from vmmswap.handoff.client import DummyPage, Region, VmmClient, open_userfaultfd

SIZE_BYTES = 4 << 20


def bytes_of_guest() -> bytes:
    return b"".join(page.to_bytes(8, "little") * 512 for page in range(1, SIZE_BYTES // 4096 + 1))


def mapped(memfd: int) -> tuple[mmap.mmap, int]:
    memory = mmap.mmap(memfd, SIZE_BYTES)
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))


def vmm(hand_off: str, path: str) -> None:
    memfd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(memfd, SIZE_BYTES)
    memory, addr = mapped(memfd)
    memory[:] = bytes_of_guest()
    client, dummy = VmmClient.connect(hand_off), DummyPage()
    client.register([Region(addr, SIZE_BYTES, 0, 0)], [memfd], open_userfaultfd(), dummy_page=dummy.addr)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        os.umask(0)
        listener.bind(path)
        listener.listen()
        print("registered", flush=True)
        other, _ = listener.accept()
    socket.send_fds(other, [b"memory"], [memfd])
    data, (uffd,), _, _ = socket.recv_fds(other, 4096, 1)
    told = json.loads(data)
    region = Region(told["addr"], SIZE_BYTES, 0, 0)
    client.add_process([region], uffd, os.pidfd_open(told["pid"]), dummy_page=told["dummy_page"])
    print("added", flush=True)
    other.recv(1)


def back_end(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(path)
        _, (memfd,), _, _ = socket.recv_fds(sock, 4096, 1)
        memory, addr = mapped(memfd)
        dummy = DummyPage()
        told = {"addr": addr, "dummy_page": dummy.addr, "pid": os.getpid()}
        socket.send_fds(sock, [json.dumps(told).encode()], [open_userfaultfd()])
        os.close(memfd)
        while True:
            signal.sigwait({signal.SIGUSR1})
            print("read", hashlib.sha256(memory[:]).hexdigest(), flush=True)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    {"vmm": vmm, "back-end": back_end}[sys.argv[1]](*sys.argv[2:])
