# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for an operation to end, with a progress bar on a terminal.

Waiting is for signals; each leads to a look at the VM's status, so that none is lost between two looks. Only
the bar's figures are fetched by the clock: counters are not signalled.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator

from vmmswap.ctl.client import Client, Watch
from vmmswap.ctl.failure import CtlError, ExitStatus, one_line
from vmmswap.ctl.output import StatusKeys
from vmmswap.errors import NoSuchVMError
from vmmswap.status import State

_REFRESH_S = 0.2

Show = Callable[[StatusKeys], None]


@contextlib.contextmanager
def progress(name: str, *, quiet: bool) -> Iterator[Show | None]:
    """A bar on stderr that is fed with statuses; None where nobody would see it."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415  slow to import
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)

        def show(status: StatusKeys) -> None:
            bar.update(
                task,
                description=f"{name} {one_line(str(status.get('Operation', '')))}",
                completed=status.get("ProgressPages", 0),
                total=status.get("TotalPages", 0) or None,
            )

        yield show


async def until_settled(client: Client, watch: Watch, show: Show | None) -> StatusKeys:
    """Wait until no operation runs on the VM, and return its status then. CtlError if the VM goes away."""
    while True:
        watch.clear()
        try:
            status = await client.status(watch.name)
        except NoSuchVMError:
            watch.gone = True
        if watch.gone:
            raise CtlError(
                ExitStatus.NO_SUCH_VM,
                f"{watch.name} went away: the VM ended, or its monitor restarts; see `vmmswapctl list`",
            )
        if not status.get("Operation"):
            return status
        await _next_look(watch, status, show)


async def until_state(client: Client, name: str, state: State) -> StatusKeys:
    """Wait until the VM is there, in that state and without an operation. CtlError if it has Failed instead:
    it does not leave that by itself.
    """
    while True:
        await client.wait_for(name)
        with contextlib.suppress(NoSuchVMError):
            async with client.watch(name) as watch:
                while not watch.gone:
                    watch.clear()
                    status = await client.status(name)
                    if status.get("State") == state and not status.get("Operation"):
                        return status
                    if status.get("State") == State.FAILED:
                        raise failed(status)
                    await watch.wait(None)


async def until_gone(client: Client, watch: Watch, show: Show | None) -> None:
    """Wait until the VM's monitor has left the bus. CtlError if it has failed to swap in, and so stays."""
    while not watch.gone:
        watch.clear()
        try:
            status = await client.status(watch.name)
        except NoSuchVMError:
            return
        if status.get("State") == State.FAILED and not status.get("Operation"):
            raise failed(status)
        await _next_look(watch, status, show)


async def _next_look(watch: Watch, status: StatusKeys, show: Show | None) -> None:
    if show:
        show(status)
    await watch.wait(_REFRESH_S if show else None)


def failed(status: StatusKeys) -> CtlError:
    """The error for a VM in State Failed."""
    name, reason = status.get("Name", ""), one_line(str(status.get("Error", "")))
    return CtlError(
        ExitStatus.FAILED, f"{name}: {reason or 'failed'}; `vmmswapctl status {name}` shows what is where"
    )


@contextlib.contextmanager
def goes_on(name: str, operation: str) -> Iterator[None]:
    """Turn Ctrl-C into an error that says that the operation continues without us."""
    try:
        yield
    except asyncio.CancelledError as error:
        raise CtlError(
            ExitStatus.INTERRUPTED,
            f"interrupted; a {operation} of {name} that has begun continues: see `vmmswapctl status {name}`",
        ) from error
