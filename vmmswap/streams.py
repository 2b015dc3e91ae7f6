# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard input, output and error of a program: there, whoever started it, and written to the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_BROKEN_PIPE = 141  # what a shell shows for a program that SIGPIPE has ended
_Parsed = TypeVar("_Parsed")


def open_closed() -> None:
    """Put /dev/null in the place of a standard stream that is closed: else a program prints to the next file
    or socket that it opens.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: fd
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  for as long as the program lives


def written(program: str, status: int) -> int:
    """The exit status of a program, once what it has printed is written; another one if that fails."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard()
        return _BROKEN_PIPE
    except OSError as error:
        _discard()
        if status == 0:
            print(f"{program}: standard output: {error.strerror}", file=sys.stderr)
            return 1
    return status


def _discard() -> None:
    """Python would try once more at exit, and complain."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def parsed(program: str, parse: Callable[[], _Parsed]) -> _Parsed:
    """What `parse` makes of the command line. SystemExit if that was all: help, or what is wrong with it."""
    try:
        return parse()
    except SystemExit as ended:
        raise SystemExit(written(program, int(ended.code or 0))) from None
