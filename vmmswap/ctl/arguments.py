# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of vmmswapctl: verbs, options, and an example for each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import vmmswap
from vmmswap.ctl.failure import ExitStatus, one_line
from vmmswap.ctl.output import COLUMNS, DEFAULT_COLUMNS
from vmmswap.errors import InvalidRegionError
from vmmswap.region_text import parse_region
from vmmswap.status import State

_EPILOG = """\
exit status:
  0  done
  1  failed
  2  bad usage
  3  no such VM
  4  not allowed
  5  no daemon to talk to

`vmmswapctl VERB --help` has an example for each verb.
"""

_DONE_WHEN = (
    "Waits until it is done, with a progress bar on a terminal; --no-wait returns once it is accepted."
)

_STATES = tuple(str(state) for state in State if state is not State.IN_PROGRESS)
_TIMEOUT_MAX_S = 86400.0 * 365

_STYLE: dict[str, Any] = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction["_Parser"]  # argparse has no public name for it


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of argparse's usage and message."""
        self.exit(ExitStatus.BAD_USAGE, f"{self.prog}: {one_line(message)}; see `{self.prog} --help`\n")


def parser() -> _Parser:
    """The parser of the whole command line. `verb` names the verb; log and trace have an `action` too."""
    top = _Parser(
        prog="vmmswapctl",
        description="Take idle VMs' memory out of the host's, look at it, and bring it back.",
        epilog=_EPILOG,
        **_STYLE,
    )
    top.add_argument("--version", action="version", version=f"vmmswapctl {vmmswap.__version__}")
    _add_bus_options(top, default=None)
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    _add_queries(verbs)
    _add_operations(verbs)
    _add_host_verbs(verbs)
    _add_log(verbs)
    _add_trace(verbs)
    _add_demo(verbs)
    return top


def _add_bus_options(target: _Parser, default: str | None) -> None:
    """--bus and --host, before the verb and after it; there with SUPPRESS, so as not to undo the first."""
    group = target.add_mutually_exclusive_group()
    group.add_argument(
        "--bus",
        metavar="ADDRESS",
        default=default,
        help="D-Bus address to use (default: $DBUS_SYSTEM_BUS_ADDRESS, else the system bus)",
    )
    group.add_argument(
        "--host",
        "-H",
        metavar="USER@HOST",
        default=default,
        help="work on another host's system bus, through ssh, as systemctl does",
    )
    target.add_argument(
        "--no-ask-password",
        action="store_true",
        default=False if default is None else default,
        help="do not ask for a password where polkit wants one: fail at once",
    )


def _verb(verbs: Verbs, name: str, summary: str, example: str, details: str = "") -> _Parser:
    """A verb without options. `details` comes below the summary in its help."""
    return verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n{details}",
        epilog=f"example:\n  {example}\n",
        **_STYLE,
    )


def _bus_verb(verbs: Verbs, name: str, summary: str, example: str, details: str = "") -> _Parser:
    verb = _verb(verbs, name, summary, example, details)
    _add_bus_options(verb, default=argparse.SUPPRESS)
    return verb


def _add_json(verb: _Parser, what: str) -> None:
    verb.add_argument("--json", action="store_true", help=f"for programs: {what}")


def _add_queries(verbs: Verbs) -> None:
    verb = _bus_verb(
        verbs,
        "list",
        "list all VMs",
        details=f"Columns: {', '.join(COLUMNS)}.",
        example="vmmswapctl list --sort resident --reverse",
    )
    verb.add_argument("--no-legend", action="store_true", help="omit titles and totals")
    verb.add_argument(
        "--columns",
        type=_columns,
        metavar="NAME,...",
        default=DEFAULT_COLUMNS,
        help=f"which columns, in this order (default: {','.join(DEFAULT_COLUMNS)})",
    )
    verb.add_argument(
        "--sort",
        type=_column,
        metavar="NAME",
        default="name",
        help="sort by this column (default: name)",
    )
    verb.add_argument("--reverse", action="store_true", help="put the largest first")
    _add_json(verb, "one JSON object a line, with the keys of Status()")

    verb = _bus_verb(
        verbs,
        "status",
        "show VMs' memory, operation and counters",
        details="Prints the named VMs one after the other; all VMs if none is named.",
        example="vmmswapctl status web --json",
    )
    verb.add_argument("names", metavar="NAME", nargs="*")
    verb.add_argument("--all", action="store_true", help="all VMs, as without NAME")
    _add_json(verb, "one JSON object a line, with the keys of Status()")

    verb = _bus_verb(
        verbs,
        "config",
        "show the configuration that a VM's monitor runs with",
        details="Each value stands under the file and line that it comes from.",
        example="vmmswapctl config web",
    )
    verb.add_argument("name", metavar="NAME")
    _add_json(verb, "one JSON object a line: Key, Value, Origin, AfterRestart")

    verb = _bus_verb(
        verbs,
        "wait",
        "wait until a VM is in a state and no operation runs on it",
        details=f"STATE is one of {', '.join(_STATES)}. Also waits for a VM that is not there yet.",
        example="vmmswapctl wait web Active --timeout 60",
    )
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("state", metavar="STATE", choices=_STATES)
    verb.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="give up after that, with status 1 (default: never)",
    )
    _add_json(verb, "one JSON object, what Status() says at the end")

    verb = _bus_verb(
        verbs,
        "monitor",
        "follow VMs as they come, change and go",
        details="Prints one line for each change until interrupted; with NAME, until that VM has gone.",
        example="vmmswapctl monitor web",
    )
    verb.add_argument("name", metavar="NAME", nargs="?")
    _add_json(verb, "one JSON object a line")


def _add_operations(verbs: Verbs) -> None:
    operations = {
        "enable": "swap all of a VM's memory out",
        "disable": "swap all of a VM's memory in",
        "trim": "swap out again, without a write, pages that came back and have not changed",
        "flush": "move what is out and on RAM to disk",
        "exit": "swap all memory in, release the VM and end its monitor",
        "detach": "swap all memory in and leave an attached VMM as it was before",
    }
    for name, summary in operations.items():
        verb = _bus_verb(verbs, name, summary, f"vmmswapctl {name} web", _DONE_WHEN)
        verb.add_argument("name", metavar="NAME")
        verb.add_argument("--no-wait", action="store_true", help="return as soon as the order is accepted")
        if name not in {"exit", "detach"}:
            _add_json(verb, "one JSON object, what Status() says at the end")

    verb = _bus_verb(
        verbs,
        "wake",
        "bring back now what a VM needed when it woke up before",
        details="The VM stays Active. Returns at once; without a wake-up that was recorded, nothing happens.",
        example="vmmswapctl wake web",
    )
    verb.add_argument("name", metavar="NAME")


def _add_host_verbs(verbs: Verbs) -> None:
    verb = _bus_verb(
        verbs,
        "prepare",
        "make a socket on which a VMM hands its memory over",
        details="Prints the socket's path.",
        example="vmmswapctl prepare web",
    )
    verb.add_argument("name", metavar="NAME")
    _add_json(verb, "one JSON object with Name and Socket")

    verb = _bus_verb(
        verbs,
        "unprepare",
        "remove a socket that `prepare` made",
        details="Refused while a VM is there: `vmmswapctl exit` releases it first.",
        example="vmmswapctl unprepare web",
    )
    verb.add_argument("name", metavar="NAME")

    verb = _bus_verb(
        verbs,
        "attach",
        "take over a running VMM that knows nothing of vmmswap",
        details=(
            "Finds guest memory by itself; --region, which may be repeated, chooses it by hand.\n--force"
            " attaches even if harm cannot be ruled out: docs/attach.md says when."
        ),
        example='vmmswapctl attach web "$(pidof qemu-system-x86_64)"',
    )
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("pid", metavar="PID", type=_pid, nargs="?")
    verb.add_argument("--unit", metavar="UNIT", help="the main process of this systemd unit, instead of PID")
    verb.add_argument(
        "--libvirt", metavar="DOMAIN", help="the process of this libvirt domain, instead of PID"
    )
    verb.add_argument(
        "--region",
        dest="regions",
        action="append",
        default=[],
        type=_region,
        metavar="START-END",
        help="where guest memory is, in hexadecimal as in /proc/PID/maps (default: all that looks like it)",
    )
    verb.add_argument("--force", action="store_true", help="attach even if harm cannot be ruled out")
    verb.add_argument(
        "--qmp",
        type=_absolute_path,
        metavar="PATH",
        help=(
            "QEMU's QMP socket, which nobody else may use: to ask which private memory is RAM and for"
            " devices that were added, and to drain its I/O"
        ),
    )
    _add_json(verb, "one JSON object with Name and Path")


def _add_log(verbs: Verbs) -> None:
    verb = _bus_verb(
        verbs,
        "log",
        "start or stop the logging of page faults",
        details="`vmmswapctl trace` reads what was logged.",
        example="vmmswapctl log start web",
    )
    verb.add_argument("action", choices=("start", "stop"))
    verb.add_argument("name", metavar="NAME")


def _add_trace(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "trace",
        "read logged page faults",
        details=(
            "export: print the newest trace as JSON lines, a header and then one line a fault.\n"
            "stats: count its faults by time, page, process and region.\n"
            "Reads this host's journal or trace file; for another host use `ssh HOST vmmswapctl trace ...`."
        ),
        example="vmmswapctl trace export web --from journal > web.trace",
    )
    verb.add_argument("action", choices=("export", "stats"))
    verb.add_argument("name", metavar="NAME")
    verb.add_argument(
        "--from",
        dest="source",
        choices=("journal", "file"),
        help="where to read (default: the file if there is one, else the journal)",
    )
    verb.add_argument(
        "--log-dir",
        type=Path,
        metavar="DIR",
        help="directory that holds NAME/page_fault.log (default: /var/log/vmmswap)",
    )
    _add_json(verb, "stats as one JSON object (export prints JSON always)")


def _add_demo(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "demo",
        "swap a real guest out and in, and check every byte",
        details=(
            "Starts a bus, a monitor and a small guest of its own, and removes all of it at the end.\n"
            "Needs neither systemd nor a system bus; needs root or access to /dev/userfaultfd."
        ),
        example="vmmswapctl demo --size 1024",
    )
    verb.add_argument(
        "--size", type=_size_mib, default=512, metavar="MIB", help="guest memory in MiB (default: 512)"
    )
    verb.add_argument("--swap-dir", type=Path, metavar="DIR", help="where to store pages (default: /var/tmp)")
    _add_json(verb, "one JSON object with all figures")


def _column(text: str) -> str:
    if text not in COLUMNS:
        raise argparse.ArgumentTypeError(f"there is no column {text!r}: use {', '.join(COLUMNS)}")
    return text


def _columns(text: str) -> tuple[str, ...]:
    return tuple(_column(name) for name in text.split(","))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= _TIMEOUT_MAX_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _pid(text: str) -> int:
    # 2**22 is the kernel's PID_MAX_LIMIT.
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 1 << 22):
        raise argparse.ArgumentTypeError(f"{text!r} is not a process id")
    return int(text)


def _region(text: str) -> str:
    """The text, as AttachWithOptions takes it, if it is a region."""
    try:
        start, end = parse_region(text)
    except InvalidRegionError as error:
        raise argparse.ArgumentTypeError(error.message) from error
    if start >= end:
        raise argparse.ArgumentTypeError(f"region {text!r} ends before it begins")
    return text


def _absolute_path(text: str) -> str:
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is not an absolute path")
    return text


def _size_mib(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 16 <= int(text) <= 1 << 20):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in MiB: use 16 to 1048576")
    return int(text)
