#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A hostile VMM and a hostile client of the bus, run as a user of the machine with the installed package.

hostile.py handoff SOCKET MESSAGE
    Send it with one fd; print the answer.
hostile.py hold SOCKET COUNT LEFT
    Open connections that say nothing, until all but LEFT were closed by the other side; hold these.
hostile.py linger SOCKET
    Send a message with the last fd of a TCP socket that has unsent data and SO_LINGER: whoever closes it
    waits for an hour, or until this program is killed. Print the answer.
hostile.py flood CONNECTIONS CALLS PATH INTERFACE.MEMBER SIGNATURE ARGUMENT
    Call org.vmmswap from each connection, and never answer when polkit's agent of this user is asked for a
    password. Print "sent", then each error's name and "asked" for each question, until killed.
"""

from __future__ import annotations

import array
import asyncio
import os
import select
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from vmmswap.bus.connection import Connection
from vmmswap.bus.dbus import Flag, Variant
from vmmswap.bus.dispatch import Call, error_name_of
from vmmswap.bus.interface import Arg, Interface, Method
from vmmswap.errors import VmmswapError
from vmmswap.names import BUS_NAME

POLKIT = ("org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority")
ASK = Method(
    "BeginAuthentication", ins=tuple(Arg("", kind) for kind in ("s", "s", "s", "a{ss}", "s", "a(sa{sv})"))
)
CANCEL = Method("CancelAuthentication", ins=(Arg("", "s"),))
AGENT = Interface("org.freedesktop.PolicyKit1.AuthenticationAgent", methods=(ASK, CANCEL))


def connected(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock


def handoff(path: str, message: str) -> None:
    """The fd is not even a userfaultfd: who may not hand over hears that, and nothing of what he sent."""
    try:
        with connected(path) as sock:
            rights = array.array("i", [os.open("/dev/null", os.O_RDONLY)])
            sock.sendmsg([message.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            print(sock.makefile().readline())
    except OSError as error:
        print(type(error).__name__)


def linger(path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        reader, _ = listener.accept()
    sender.setblocking(False)
    try:
        while True:
            sender.send(bytes(65536))
    except BlockingIOError:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    with connected(path) as sock, reader:
        rights = array.array("i", [sender.fileno()])
        message = b'{"vmmswap":1,"type":"attach"}\n'
        sock.sendmsg([message[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        os.close(sender.detach())  # before the monitor does, which waits for the rest: else we are who waits
        sock.sendall(message[1:])
        print(sock.makefile().readline(), flush=True)
        signal.pause()


def hold(path: str, count: str, left: str) -> None:
    poll = select.poll()
    sockets = {sock.fileno(): sock for sock in (connected(path) for _ in range(int(count)))}
    for sock in sockets.values():
        poll.register(sock, select.POLLIN)
    while len(sockets) > int(left):
        for fd, _events in poll.poll():
            poll.unregister(fd)
            sockets.pop(fd).close()
    print(len(sockets), flush=True)
    signal.pause()


class Agent:
    """Asks nobody for a password, and never answers."""

    path = "/agent"
    interfaces = (AGENT,)

    async def call(self, _interface: Interface, call: Call) -> list[Any]:
        if call.method is ASK:
            print("asked", flush=True)
            await asyncio.Event().wait()
        return []

    async def get(self, _interface: Interface, _name: str) -> Any:
        raise AssertionError

    async def get_all(self, _interface: Interface) -> dict[str, Any]:
        return {}


async def be_an_agent(pid: int, ready: int) -> None:
    """For this process's questions; it outlives the process."""
    connection = Connection()
    connection.export(Agent())
    await connection.start()
    started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    subject = ["unix-process", {"pid": Variant("u", pid), "start-time": Variant("t", started)}]
    arguments = [subject, "C", Agent.path]
    await connection.call(
        *POLKIT, POLKIT[0] + ".Authority", "RegisterAuthenticationAgent", "(sa{sv})ss", arguments
    )
    print(f"agent={os.getpid()}", flush=True)
    os.write(ready, b"x")
    await asyncio.Event().wait()


async def ordered(connection: Connection, path: str, method: str, signature: str, argument: str) -> None:
    interface, _, member = method.rpartition(".")
    body = [argument] if signature else []
    try:
        await connection.call(
            *(BUS_NAME, path, interface, member, signature, body),
            timeout_s=600,
            flags=Flag.ALLOW_INTERACTIVE_AUTHORIZATION,
        )
    except VmmswapError as error:
        print(error_name_of(error), flush=True)


def start_agent() -> None:
    """In a process of its own, so that polkit goes on asking when this one is killed."""
    parent = os.getpid()
    registered, ready = os.pipe()
    if os.fork() == 0:
        asyncio.run(be_an_agent(parent, ready))
    os.read(registered, 1)


async def flood(connections: str, calls: str, *call: str) -> None:
    waiting = []
    for _ in range(int(connections)):
        connection = Connection()
        await connection.start()
        orders = [ordered(connection, *call) for _ in range(int(calls))]
        waiting += [asyncio.create_task(order) for order in orders]
        await asyncio.sleep(0)
        await connection.list_names()  # all calls before this one have reached the bus
    print("sent", flush=True)
    await asyncio.gather(*waiting)


if __name__ == "__main__":
    match sys.argv[1]:
        case "handoff":
            handoff(*sys.argv[2:])
        case "hold":
            hold(*sys.argv[2:])
        case "linger":
            linger(*sys.argv[2:])
        case "flood":
            start_agent()
            asyncio.run(flood(*sys.argv[2:]))
