# SPDX-License-Identifier: GPL-2.0-or-later
"""A FUSE server that stops answering: python fuse_server.py SOCKET-FD PATH [INODE]

It mounts itself where nobody else sees it, opens its one file, and sends the fd over the socket. Once it gets
a byte there it answers nothing any more, and names each request in a line of its own. It takes the end of
this process to end who waits for an answer. INODE: what it says is the number of its file.
"""

import array
import ctypes
import os
import socket
import struct
import sys
import threading

LOOKUP, FORGET, GETATTR, OPEN, STATFS, INIT = 1, 2, 3, 14, 17, 26
NAMES = {3: "getattr", 15: "read", 17: "statfs", 18: "release", 25: "flush", 36: "interrupt"}
_IN = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extensions, padding
_OUT = struct.Struct("<IiQ")  # length, error, unique
_CLONE_NEWNS = 0x20000
_MS_PRIVATE_REC = 1 << 18 | 1 << 14
_ROOT, _FILE = 1, 2
_FILE_BYTES = 1 << 20


def attributes(node: int) -> bytes:
    mode = 0o40755 if node == _ROOT else 0o100666
    inode = int(sys.argv[3]) if node == _FILE and len(sys.argv) > 3 else node
    return struct.pack("<6Q10I", inode, _FILE_BYTES, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer_of(opcode: int, node: int) -> bytes:
    """Attributes are never kept by the kernel: each stat() asks."""
    if opcode == INIT:
        return struct.pack("<4I2H2I2H8I", 7, 31, 0, 0, 16, 12, 1 << 16, 1, 0, 0, *[0] * 8)
    if opcode == LOOKUP:
        return struct.pack("<4Q2I", _FILE, 0, 0, 0, 0, 0) + attributes(_FILE)
    if opcode == GETATTR:
        return struct.pack("<QII", 0, 0, 0) + attributes(node)
    if opcode == STATFS:
        return bytes(80)
    return struct.pack("<QII", 0, 0, 0) if opcode == OPEN else b""


class Voice:
    """What is said over the socket: "silent", then the requests that get no answer."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._one = threading.Lock()
        self._is_silent = False

    def silence(self) -> None:
        with self._one:  # or a request that comes just now is named first
            self._is_silent = True
            self._stream.sendall(b"silent\n")

    def names(self, opcode: int) -> bool:
        """True if the request is named instead of answered."""
        with self._one:
            if self._is_silent:
                self._stream.sendall(f"{NAMES.get(opcode, opcode)}\n".encode())
            return self._is_silent


def serve(device: int, voice: Voice) -> None:
    while True:
        request = os.read(device, 1 << 18)
        _, opcode, unique, node, *_ = _IN.unpack_from(request)
        if not voice.names(opcode) and opcode != FORGET:
            body = answer_of(opcode, node)
            os.write(device, _OUT.pack(_OUT.size + len(body), 0, unique) + body)


def main() -> None:
    stream = socket.socket(fileno=int(sys.argv[1]))
    path = sys.argv[2]
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if (
        libc.unshare(_CLONE_NEWNS)
        or libc.mount(b"none", b"/", None, _MS_PRIVATE_REC, None)
        or libc.mount(b"vmmswap-test", path.encode(), b"fuse", 0, options)
    ):
        raise OSError(ctypes.get_errno(), "mount")
    voice = Voice(stream)
    threading.Thread(target=serve, args=(device, voice), daemon=True).start()
    file = os.open(f"{path}/file", os.O_RDWR)
    stream.sendmsg([b"ready\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))])
    os.close(file)  # or our own end would wait for our answer
    stream.recv(1)
    voice.silence()
    threading.Event().wait()


if __name__ == "__main__":
    main()
