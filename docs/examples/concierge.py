#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A concierge: prepares a VM, and keeps its memory out of the host's RAM while it is idle.

    concierge.py web --idle-if 'test -e /run/web.idle' --every 5

It prepares vmmswap@web.socket, waits until a VMM has handed its memory over there, and from then on runs the
command every few seconds: while that succeeds the VM is idle, and its memory goes out; when it fails, all
comes back. (What the guest needs comes back by itself, page by page; Disable is for one that wakes for good.)

It is a plain D-Bus client: dbus-next is all that it needs, and nothing of vmmswap's own code.
"""

import argparse
import asyncio
import contextlib
import signal
import sys
from typing import Any

from dbus_next import BusType, DBusError
from dbus_next.aio import MessageBus

SERVICE = "org.vmmswap"
ROOT = "/org/vmmswap"


def say(text: str) -> None:
    print(text, flush=True)


class Concierge:
    """One VM, from Prepare to the end of this program."""

    def __init__(self, name: str, idle_command: str, period_s: float) -> None:
        self.name = name
        self.idle_command = idle_command
        self.period_s = period_s
        self.path = ""
        self.manager: Any = None  # the VM's proxy while it is there
        self.state = ""

    async def run(self, bus: MessageBus) -> None:
        node = await bus.introspect(SERVICE, ROOT)  # which starts vmmswapd, if it is not there
        root = bus.get_proxy_object(SERVICE, ROOT, node)
        self.host: Any = root.get_interface("org.vmmswap.Host")
        self.objects: Any = root.get_interface("org.freedesktop.DBus.ObjectManager")
        self.bus = bus

        # Listen first, then look: what comes in between is seen twice rather than never.
        self.events: asyncio.Queue[str] = asyncio.Queue()
        self.objects.on_interfaces_added(lambda path, _interfaces: self.events.put_nowait(path))
        self.objects.on_interfaces_removed(lambda path, _interfaces: self.events.put_nowait(path))
        await self.follow_restarts()

        socket = await self.host.call_prepare(self.name)
        say(f"prepared {socket}: start the VMM of {self.name} now")
        while True:
            try:
                await self.look()
                await self.decide()
            except DBusError as error:
                say(f"{self.name}: {error.type}: {error.text}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.events.get(), self.period_s)

    async def follow_restarts(self) -> None:
        """vmmswapd may be restarted at any time; whatever it said meanwhile was not heard, so look again."""
        node = await self.bus.introspect("org.freedesktop.DBus", "/org/freedesktop/DBus")
        proxy = self.bus.get_proxy_object("org.freedesktop.DBus", "/org/freedesktop/DBus", node)
        daemon: Any = proxy.get_interface("org.freedesktop.DBus")
        daemon.on_name_owner_changed(
            lambda name, _old, new: self.events.put_nowait(name) if name == SERVICE and new else None
        )

    async def look(self) -> None:
        """Find out whether the VM is there, and follow it from the moment that it is."""
        objects = await self.objects.call_get_managed_objects()
        for path, interfaces in objects.items():
            properties = interfaces["org.vmmswap.Manager"]
            if "Name" in properties and properties["Name"].value == self.name:
                if self.manager is None:
                    await self.meet(path)
                self.changed(properties)
                return
        if self.manager is not None:
            say(f"{self.name} is gone")
            self.manager.off_status_changed(self.changed)
            self.manager, self.state = None, ""

    async def meet(self, path: str) -> None:
        node = await self.bus.introspect(SERVICE, path)
        self.manager = self.bus.get_proxy_object(SERVICE, path, node).get_interface("org.vmmswap.Manager")
        self.manager.on_status_changed(self.changed)
        say(f"{self.name} is at {path}")

    def changed(self, status: dict[str, Any]) -> None:
        state = status["State"].value
        if state != self.state:
            self.state = state
            resident = status["ResidentPages"].value * status["PageSize"].value // 2**20
            say(f"{self.name} is {state}, {resident} MiB on RAM {status['Error'].value}".rstrip())

    async def decide(self) -> None:
        if self.manager is None:
            return
        idle = await self.is_idle()
        # A Failed VM may be told again: what stood in the way, a full disk for example, may be gone.
        if idle and self.state in ("Ready", "Failed"):
            await self.manager.call_enable()
        elif not idle and self.state in ("Active", "Failed"):
            await self.manager.call_disable()

    async def is_idle(self) -> bool:
        process = await asyncio.create_subprocess_shell(self.idle_command)
        return await process.wait() == 0


async def main() -> int:
    parser = argparse.ArgumentParser(description="keeps an idle VM's memory out of the host's RAM")
    parser.add_argument("name", help="the VM's name")
    parser.add_argument("--idle-if", required=True, metavar="COMMAND", help="succeeds while the VM is idle")
    parser.add_argument(
        "--every", type=float, default=5, metavar="SECONDS", help="how often to ask (default: 5)"
    )
    options = parser.parse_args()

    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    concierge = asyncio.create_task(Concierge(options.name, options.idle_if, options.every).run(bus))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, concierge.cancel)
    try:
        await concierge
    except asyncio.CancelledError:
        return 0  # the VM stays as it is: its monitor needs no concierge
    except DBusError as error:
        print(f"concierge: {error.type}: {error.text}", file=sys.stderr)
        return 1
    finally:
        bus.disconnect()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
