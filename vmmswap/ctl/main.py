# SPDX-License-Identifier: GPL-2.0-or-later
"""Entry point of vmmswapctl: runs a verb, and turns what went wrong into one line and an exit status."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from vmmswap import streams
from vmmswap.ctl import trace, verbs
from vmmswap.ctl.arguments import parser
from vmmswap.ctl.failure import CtlError, ExitStatus, exit_status_of, one_line
from vmmswap.ctl.remote import ssh_bus
from vmmswap.errors import VmmswapError

_DEBUG = "VMMSWAP_DEBUG"  # in the environment: the traceback of a bug is shown


def main(argv: Sequence[str] | None = None) -> int:
    """Run vmmswapctl; returns its exit status. argparse exits by itself: 2 on bad usage, 0 after --help."""
    streams.open_closed()
    args = streams.parsed("vmmswapctl", lambda: parser().parse_args(argv))
    logging.getLogger("vmmswap").addHandler(logging.NullHandler())  # errors are raised, and told below
    return streams.written("vmmswapctl", _status_of(args))


def _status_of(args: argparse.Namespace) -> int:
    """Run a verb, and say what goes wrong."""
    try:
        _run(args)
    except BrokenPipeError:
        return ExitStatus.BROKEN_PIPE
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except Exception as error:
        if os.environ.get(_DEBUG):
            raise
        return _fail(*_told(error, args.verb))
    return ExitStatus.DONE


def _told(error: Exception, verb: str) -> tuple[ExitStatus, str]:
    """The exit status for what went wrong, and how to say it."""
    match error:
        case CtlError():
            return error.status, str(error)
        case VmmswapError():
            return exit_status_of(error), error.message
        case OSError():
            status = ExitStatus.NOT_ALLOWED if isinstance(error, PermissionError) else ExitStatus.FAILED
            return status, f"{error.filename or verb}: {error.strerror or error}"
    return (
        ExitStatus.FAILED,
        f"a bug in vmmswapctl: {error!r}; please report it, with what it prints with {_DEBUG}=1 set",
    )


def _run(args: argparse.Namespace) -> None:
    if args.verb == "trace":
        _refuse_bus_options(args)
        trace.run(args)
    elif args.verb == "demo":
        from vmmswap.ctl import demo  # noqa: PLC0415  no other verb needs it

        _refuse_bus_options(args)
        demo.run(args)
    else:
        asyncio.run(_run_on_bus(args))


def _refuse_bus_options(args: argparse.Namespace) -> None:
    if args.bus is not None or args.host is not None:
        raise CtlError(
            ExitStatus.BAD_USAGE,
            f"{args.verb} uses no bus: leave --bus and --host out, or run it on that host",
        )


async def _run_on_bus(args: argparse.Namespace) -> None:
    if args.bus is not None and args.host is not None:
        raise CtlError(ExitStatus.BAD_USAGE, "--bus and --host exclude each other: leave one out")
    if args.host is None:
        await verbs.run(args, args.bus)
        return
    async with ssh_bus(args.host) as address:
        await verbs.run(args, address)


def _fail(status: ExitStatus, message: str) -> ExitStatus:
    print(f"vmmswapctl: {one_line(message)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
