# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmmswapctl monitor`: VMs as they come, change and go."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
from dataclasses import dataclass

from vmmswap.bus.connection import BUS, Match
from vmmswap.bus.dbus import Message, plain
from vmmswap.ctl import output
from vmmswap.ctl.client import Client, vm_of_bus_name
from vmmswap.ctl.failure import CtlError, ExitStatus
from vmmswap.ctl.output import StatusKeys
from vmmswap.errors import NoSuchVMError
from vmmswap.names import MANAGER_INTERFACE, VM_BUS_PREFIX, VM_PATH_PREFIX, object_path_of

PRESENT, APPEARED, CHANGED, GONE = "present", "appeared", "changed", "gone"


@dataclass(frozen=True, slots=True)
class _Event:
    what: str
    name: str
    status: StatusKeys | None = None


class _Follower:
    """Turns the bus's signals into events. A VM's signals are believed only from the owner of its name."""

    def __init__(self, only: str | None) -> None:
        self.events: asyncio.Queue[_Event | None] = asyncio.Queue()  # None: the bus has gone
        self.owners: dict[str, str] = {}  # VM name -> unique bus name of its monitor
        self._only = only

    def wants(self, name: str) -> bool:
        return bool(name) and self._only in (None, name)

    def on_signal(self, message: Message) -> None:
        if message.member == "NameOwnerChanged":
            self._owner_changed(vm_of_bus_name(str(message.body[0])), str(message.body[2]))
            return
        for name, owner in self.owners.items():
            if owner == message.sender and message.path == object_path_of(name):
                self.events.put_nowait(_Event(CHANGED, name, plain(message.body[0])))

    def _owner_changed(self, name: str, owner: str) -> None:
        if not self.wants(name):
            return
        if self.owners.pop(name, ""):
            self.events.put_nowait(_Event(GONE, name))
        if owner:
            self.owners[name] = owner
            self.events.put_nowait(_Event(APPEARED, name))


async def follow(client: Client, args: argparse.Namespace) -> None:
    """Print the VMs that are there, then each change, until interrupted or the VM asked for has gone."""
    follower = _Follower(args.name)
    await _subscribe(client, follower)
    if args.name and not follower.owners:
        raise NoSuchVMError(f"no VM named {args.name}; `vmmswapctl list` shows all there are")
    end = asyncio.create_task(_tell_end(client, follower))
    try:
        while (event := await follower.events.get()) is not None:
            await _print_event(client, event, as_json=args.json)
            if event.what == GONE and args.name:
                return
    finally:
        end.cancel()
        await asyncio.gather(end, return_exceptions=True)
    raise CtlError(ExitStatus.NO_DAEMON, "the message bus went away; start again when it is back")


async def _subscribe(client: Client, follower: _Follower) -> None:
    changes = Match(MANAGER_INTERFACE, "StatusChanged", path_namespace=VM_PATH_PREFIX.rstrip("/"))
    names = Match(BUS, "NameOwnerChanged", sender=BUS, arg0namespace=VM_BUS_PREFIX.rstrip("."))
    await client.connection.subscribe(names, follower.on_signal)
    await client.connection.subscribe(changes, follower.on_signal)
    for name in await client.vm_names():
        if follower.wants(name) and name not in follower.owners:
            with contextlib.suppress(NoSuchVMError):
                follower.owners[name] = await client.owner(name)
                follower.events.put_nowait(_Event(PRESENT, name))


async def _tell_end(client: Client, follower: _Follower) -> None:
    await client.connection.ended.wait()
    follower.events.put_nowait(None)


async def _print_event(client: Client, event: _Event, *, as_json: bool) -> None:
    status = event.status
    if event.what in (PRESENT, APPEARED):
        with contextlib.suppress(NoSuchVMError):  # gone since: its own event tells
            status = await client.status(event.name)
    now = datetime.datetime.now().astimezone()
    if as_json:
        output.print_json(
            {
                "Time": now.isoformat(timespec="milliseconds"),
                "Event": event.what,
                "Name": event.name,
                "Status": status,
            }
        )
        return
    text = output.change_line(status) if status else event.name
    print(f"{now:%H:%M:%S} {event.what:<8} {text}", flush=True)
