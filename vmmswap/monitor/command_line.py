# SPDX-License-Identifier: GPL-2.0-or-later
"""Parses the command line of a monitor that somebody starts by hand."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from vmmswap.engine import failpoint_names
from vmmswap.monitor.command import EXIT_USAGE, PROGRAM, Command


class _Parser(argparse.ArgumentParser):
    """Report a mistake on one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see --help", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def parser() -> argparse.ArgumentParser:
    found = _Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Swaps one VM's memory out, and brings it back page by page when the VM wakes.",
        epilog="Run by vmmswap@NAME.service. By hand: vmmswap-monitor web --listen web.sock --swap-dir .",
    )
    found.add_argument("name", metavar="NAME", nargs="?", help="the VM's name")
    found.add_argument("--listen", metavar="PATH", type=Path, help="the hand-off socket (default: systemd's)")
    found.add_argument(
        "--attach", metavar="PID", type=int, help="take over a running VMM that knows nothing of vmmswap"
    )
    found.add_argument(
        "--region",
        metavar="START-END",
        action="append",
        default=[],
        help=(
            "with --attach: where guest memory is in the VMM, in hexadecimal; may be repeated (default:"
            " all that looks like it)"
        ),
    )
    found.add_argument(
        "--force", action="store_true", help="with --attach: attach even if harm cannot be ruled out"
    )
    found.add_argument(
        "--qmp",
        metavar="PATH",
        type=os.path.abspath,
        help=(
            "with --attach: QEMU's QMP socket, which nobody else may use: to ask which private memory is"
            " RAM and for devices that were added, and to drain its I/O"
        ),
    )
    found.add_argument(
        "--swap-dir",
        metavar="DIR",
        type=Path,
        help="where the unnamed swap file goes (default: $STATE_DIRECTORY, else /var/lib/vmmswap/NAME)",
    )
    found.add_argument(
        "--log-dir",
        metavar="DIR",
        type=Path,
        help="where page_fault.log goes (default: $LOGS_DIRECTORY, else /var/log/vmmswap/NAME)",
    )
    found.add_argument("--bus", metavar="ADDRESS", help="the message bus (default: the system bus)")
    found.add_argument(
        "--config", metavar="FILE", type=Path, help="instead of /etc/vmmswap.conf and /etc/vmmswap.conf.d"
    )
    found.add_argument(
        "--check-config",
        action="store_true",
        help="check the configuration, print NAME's settings and where each stands, and exit",
    )
    found.add_argument("--debug", action="store_true", help="log more")
    if failpoint_names():
        found.add_argument(
            "--list-failpoints",
            action=_ListFailpoints,
            nargs=0,
            default=argparse.SUPPRESS,
            help="and exit",
        )
    return found


class _ListFailpoints(argparse.Action):
    """Only of the engine that is built for tests."""

    def __call__(self, *_arguments: object) -> NoReturn:
        print("\n".join(failpoint_names()))
        raise SystemExit(0)


def parse(words: list[str]) -> Command:
    """Treat a name that begins with a dash, which systemd may pass, as a wrong name and not as a wrong
    option.
    """
    ours = parser()
    options, rest = ours.parse_known_args(words)
    if options.name is None and len(rest) == 1 and not rest[0].startswith("--"):
        options.name = rest.pop()
    if rest:
        ours.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.name is None and not options.check_config:
        ours.error("which VM? NAME is missing")
    if options.attach is None and (options.region or options.force or options.qmp):
        ours.error("--region, --force and --qmp go with --attach")
    options.region = tuple(options.region)
    return Command(**vars(options))
