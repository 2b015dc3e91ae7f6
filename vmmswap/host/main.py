# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswapd's command line."""

from __future__ import annotations

import argparse
import asyncio
import sys

from vmmswap import log, streams
from vmmswap.bus.connection import NameUnavailableError
from vmmswap.errors import VmmswapError
from vmmswap.host.daemon import Daemon

EXIT_UNAVAILABLE = 69  # EX_UNAVAILABLE: systemd does not try again


def main(arguments: list[str] | None = None) -> int:
    """Run vmmswapd; the exit status."""
    streams.open_closed()
    options = streams.parsed("vmmswapd", lambda: _parser().parse_args(arguments))
    log.set_up("vmmswapd")
    try:
        asyncio.run(_run(options))
    except VmmswapError as error:
        print(f"vmmswapd: {error.message}", file=sys.stderr)
        return EXIT_UNAVAILABLE if isinstance(error, NameUnavailableError) else 1
    except OSError as error:
        print(f"vmmswapd: {error.filename or 'start'}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


async def _run(options: argparse.Namespace) -> None:
    log.start()
    await Daemon(options.bus, options.idle_exit).run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vmmswapd",
        description="Shows all VMs of this host under one name on the system bus, org.vmmswap.",
        epilog="The bus starts it when somebody calls; it exits when there is nothing to do.",
    )
    parser.add_argument("--bus", metavar="ADDRESS", help="the message bus (default: the system bus)")
    parser.add_argument(
        "--idle-exit",
        metavar="SECONDS",
        type=_seconds,
        default=60.0,
        help="exit after this time without a VM, a prepared socket or a call; 0: never (default: 60)",
    )
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value


if __name__ == "__main__":
    sys.exit(main())
