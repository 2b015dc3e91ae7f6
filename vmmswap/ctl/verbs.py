# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that talk over the bus."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from vmmswap.bus.dbus import Variant
from vmmswap.config_listing import listing
from vmmswap.ctl import output
from vmmswap.ctl.agent import password_agent
from vmmswap.ctl.client import Client
from vmmswap.ctl.failure import CtlError, ExitStatus, one_line
from vmmswap.ctl.follow import follow
from vmmswap.ctl.libvirt import pid_of_domain
from vmmswap.ctl.output import StatusKeys
from vmmswap.ctl.waiting import failed, goes_on, progress, until_gone, until_settled, until_state
from vmmswap.errors import NoSuchVMError
from vmmswap.names import check_name
from vmmswap.status import State

Verb = Callable[[Client, argparse.Namespace], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Operation:
    """An order to a VM: the method, what to call it in messages, the state that it leads to (None: any)."""

    method: str
    noun: str
    wanted: State | None


_NO_VMS = "no VMs; `vmmswapctl prepare NAME` makes a socket on which a VMM hands its memory over"

_OPERATIONS = {
    "enable": _Operation("Enable", "swap-out", State.ACTIVE),
    "disable": _Operation("Disable", "swap-in", State.READY),
    "trim": _Operation("Trim", "trim", None),
    "flush": _Operation("Flush", "flush", None),
}
_ENDINGS = {
    "exit": _Operation("Exit", "swap-in", None),
    "detach": _Operation("Detach", "swap-in", None),
}


async def list_vms(client: Client, args: argparse.Namespace) -> None:
    """`list`: a row for each VM on the bus, and for each that vmmswapd knows of besides."""
    found = await _all_vms(client)
    found.sort(key=output.COLUMNS[args.sort].order, reverse=args.reverse)
    if args.json:
        for status in found:
            output.print_json(status)
    elif found or args.no_legend:
        output.print_list(found, args.columns, legend=not args.no_legend)
    else:
        print(_NO_VMS)


async def _all_vms(client: Client) -> list[StatusKeys]:
    """By name: VMs on the bus, VMs that only vmmswapd knows, and sockets to which no VMM has come."""
    known = await client.host_vms()
    listening = set(await client.listening())
    names = sorted({*known, *await client.vm_names(), *listening})
    statuses = await asyncio.gather(
        *(_status_or_state(client, name, known.get(name), listening=name in listening) for name in names)
    )
    return [status for status in statuses if status is not None]


async def _status_or_state(
    client: Client, name: str, state: str | None, *, listening: bool
) -> StatusKeys | None:
    """The VM's status; what vmmswapd knows if it has no monitor now; None if it has just gone."""
    try:
        return await client.status(name)
    except NoSuchVMError:
        if state is None and not listening:
            return None
        return {"Name": name, "State": state or "", "Listening": state is None}
    except CtlError as error:
        if error.status is ExitStatus.NO_DAEMON:
            raise
        return {"Name": name, "State": state or "", "Error": str(error)}


async def show_status(client: Client, args: argparse.Namespace) -> None:
    """`status`: everything about the VMs that are named, or about all."""
    if args.all and args.names:
        raise CtlError(ExitStatus.BAD_USAGE, "--all and names exclude each other: leave one out")
    names = args.names or await client.vm_names()
    if not names and not args.json:
        print(_NO_VMS)
    for idx, status in enumerate(await asyncio.gather(*map(client.status, names))):
        if args.json:
            output.print_json(status)
            continue
        if idx:
            print()
        output.print_table(("VM", names[idx]), output.status_rows(status))


async def show_config(client: Client, args: argparse.Namespace) -> None:
    """`config`: what a VM's monitor runs with, and where each value stands."""
    rows = await client.configuration(args.name)
    if not args.json:
        print("\n".join(listing(rows)))
        return
    for row in rows:
        output.print_json(dict(zip(("Key", "Value", "Origin", "AfterRestart"), row, strict=True)))


async def wait(client: Client, args: argparse.Namespace) -> None:
    """`wait`: until the VM is in a state and no operation runs on it."""
    try:
        async with asyncio.timeout(args.timeout):
            status = await until_state(client, args.name, State(args.state))
    except TimeoutError:
        raise CtlError(
            ExitStatus.FAILED,
            f"{args.name} was not {args.state} within {args.timeout:g} s: `vmmswapctl status {args.name}`",
        ) from None
    if args.json:
        output.print_json(status)


async def operate(client: Client, args: argparse.Namespace) -> None:
    """`enable`, `disable`, `trim`, `flush`: order it, and wait until the VM has settled."""
    operation = _OPERATIONS[args.verb]
    async with client.watch(args.name) as watch:
        with goes_on(args.name, operation.noun):
            await client.order(args.name, operation.method)
            if args.no_wait:
                status = await client.status(args.name)
            else:
                with progress(args.name, quiet=args.json) as show:
                    status = await until_settled(client, watch, show)
                _check_settled(status, operation)
                if args.verb == "flush" and status.get("LimitedBy"):
                    raise _stopped(status)
    if args.json:
        output.print_json(status)
    elif not args.no_wait:
        print(output.change_line(status))


def _stopped(status: StatusKeys) -> CtlError:
    name, limit = one_line(str(status["Name"])), one_line(str(status["LimitedBy"]))
    return CtlError(
        ExitStatus.FAILED,
        f"{output.mib(status.get('StoredRamBytes', 0))} of {name} stay on RAM: limited by {limit};"
        f" `journalctl VMMSWAP_VM={name}` says more",
    )


def _check_settled(status: StatusKeys, operation: _Operation) -> None:
    if status["State"] == State.FAILED:
        raise failed(status)
    if operation.wanted is not None and status["State"] != operation.wanted:
        raise CtlError(
            ExitStatus.FAILED,
            f"{status['Name']} is {one_line(status['State'])}, not {operation.wanted}: somebody else gave"
            " another order meanwhile; repeat yours if you still want it",
        )


async def end(client: Client, args: argparse.Namespace) -> None:
    """`exit`, `detach`: order it, and wait until the monitor has left the bus."""
    operation = _ENDINGS[args.verb]
    async with client.watch(args.name) as watch:
        with goes_on(args.name, operation.noun):
            await client.order(args.name, operation.method)
            if not args.no_wait:
                with progress(args.name, quiet=False) as show:
                    await until_gone(client, watch, show)


async def log(client: Client, args: argparse.Namespace) -> None:
    """`log start`, `log stop`."""
    method = "StartPageFaultLogging" if args.action == "start" else "StopPageFaultLogging"
    await client.order(args.name, method)


async def wake(client: Client, args: argparse.Namespace) -> None:
    """`wake`: bring back what the guest needed when it woke up before."""
    await client.order(args.name, "Wake")


async def prepare(client: Client, args: argparse.Namespace) -> None:
    """`prepare`: have vmmswapd listen for a VMM, print where."""
    path = str((await client.call_host("Prepare", "s", [args.name]))[0])
    if args.json:
        output.print_json({"Name": args.name, "Socket": path})
    else:
        print(path)


async def unprepare(client: Client, args: argparse.Namespace) -> None:
    """`unprepare`: have vmmswapd remove the socket again."""
    await client.call_host("Unprepare", "s", [args.name])


async def _process_of(client: Client, args: argparse.Namespace) -> int:
    given = [what for what in (args.pid, args.unit, args.libvirt) if what is not None]
    if len(given) != 1:
        raise CtlError(
            ExitStatus.BAD_USAGE,
            "which process? Give one of PID, --unit UNIT and --libvirt DOMAIN",
        )
    if args.pid is not None:
        return int(args.pid)
    if args.unit is not None:
        return await client.main_pid(args.unit)
    if args.host:
        raise CtlError(
            ExitStatus.BAD_USAGE, "--libvirt finds domains of this machine: with --host give a PID"
        )
    return pid_of_domain(args.libvirt)


async def attach(client: Client, args: argparse.Namespace) -> None:
    """`attach`: have vmmswapd take over a running VMM."""
    pid = await _process_of(client, args)
    options: dict[str, Variant] = {}
    if args.regions:
        options["regions"] = Variant("as", args.regions)
    if args.force:
        options["force"] = Variant("b", True)
    if args.qmp:
        options["qmp"] = Variant("s", args.qmp)
    if options:
        reply = await client.call_host("AttachWithOptions", "sua{sv}", [args.name, pid, options])
    else:
        reply = await client.call_host("Attach", "su", [args.name, pid])
    path = str(reply[0])
    if args.json:
        output.print_json({"Name": args.name, "Path": path})
    else:
        print(
            f"attached: `journalctl VMMSWAP_VM={args.name}` says what was found,"
            f" `vmmswapctl enable {args.name}` swaps it out"
        )


VERBS: dict[str, Verb] = {
    "list": list_vms,
    "status": show_status,
    "config": show_config,
    "wait": wait,
    "monitor": follow,
    "log": log,
    "wake": wake,
    "prepare": prepare,
    "unprepare": unprepare,
    "attach": attach,
    **dict.fromkeys(_OPERATIONS, operate),
    **dict.fromkeys(_ENDINGS, end),
}
_READING = frozenset({"list", "status", "config", "wait", "monitor"})


async def run(args: argparse.Namespace, address: str | None) -> None:
    """Do the verb on the bus at the address. Raises CtlError and VmmswapError."""
    for name in (getattr(args, "name", None), *getattr(args, "names", ())):
        if name is not None:
            check_name(name)
    may_ask = not args.no_ask_password
    # Reading needs no right; on another host the agent would be asked for this one's.
    with password_agent(may_ask=may_ask and args.verb not in _READING and args.host is None):
        async with Client.connect(address, may_ask=may_ask) as client:
            await VERBS[args.verb](client, args)
