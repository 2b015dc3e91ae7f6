# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration of a VM for people, with where each value stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmmswap.config import DEFAULT_ORIGIN


def listing(rows: Iterable[Sequence[str]]) -> list[str]:
    """rows: key, value, where it stands, and the value that a restart would bring if that is another.

    Lines of Key=value under comments that name the file and line, as in `systemctl cat`; the defaults last,
    commented out.
    """
    lines: list[str] = []
    last = ""
    for name, value, origin, pending in sorted(rows, key=_by_origin):
        if origin != last:
            lines += ["", f"# {origin}"] if lines else [f"# {origin}"]
            last = origin
        lines.append(f"{'#' if origin == DEFAULT_ORIGIN else ''}{name}={value}")
        if pending:
            lines.append(f"# after a restart: {name}={pending}")
    return lines


def _by_origin(row: Sequence[str]) -> tuple[bool, str, int]:
    """Files by name, their lines in order, defaults last."""
    file, _, line = row[2].rpartition(":")
    return row[2] == DEFAULT_ORIGIN, file, int(line) if line.isdigit() else 0
