# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that maps a memfd and sends its uffd: memory_mapper.py SOCKET MEMFD SIZE_BYTES [OPTION].

Options: `user-mode-only`; `lock` locks a page of it; `send-on FD` registers on the connected socket FD;
`steal` reads the uffd's messages and answers none. Lives until SOCKET ends, or it is killed.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import json
import mmap
import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from vmmswap.handoff.client import DummyPage, Region, open_userfaultfd
from vmmswap.handoff.messages import encode
from vmmswap.linux.userfaultfd import open_user_mode_only


def main(sock_fd, memfd, size_bytes, *arguments):
    memory = mmap.mmap(int(memfd), int(size_bytes))
    addr = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    uffd = open_user_mode_only() if "user-mode-only" in arguments else open_userfaultfd()
    if "lock" in arguments and ctypes.CDLL(None).mlock(ctypes.c_void_p(addr), 1):
        sys.exit("cannot lock memory")
    dummy = DummyPage()
    told = json.dumps({"addr": addr, "dummy_page": dummy.addr}).encode()
    with socket.socket(fileno=int(sock_fd)) as sock:
        if "send-on" in arguments:
            send_on(int(arguments[-1]), Region(addr, int(size_bytes), 0, 0), dummy.addr, [uffd, int(memfd)])
        sock.sendmsg([told], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [uffd]))])
        if "steal" in arguments:
            steal(uffd)
        sock.recv(1)


def send_on(connected_fd, region, dummy_page, fds):
    with socket.socket(fileno=connected_fd) as connected:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        connected.sendmsg([encode("register", [region], dummy_page=dummy_page)], control)


def steal(uffd):
    while True:
        with contextlib.suppress(OSError):  # until somebody initialises it
            os.set_blocking(uffd, True)
            os.read(uffd, 32)


main(*sys.argv[1:])
