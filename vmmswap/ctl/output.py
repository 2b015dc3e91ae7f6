# SPDX-License-Identifier: GPL-2.0-or-later
"""What vmmswapctl prints: tables for people (in colour on a terminal, else plain), JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vmmswap.ctl.failure import one_line
from vmmswap.status import KEYS, Kind, StatusKey

StatusKeys = Mapping[str, Any]  # Status() as it came over the bus, variants unwrapped
Row = Sequence[str]

_STATE_STYLES = {"Ready": "green", "Active": "cyan", "InProgress": "yellow", "Failed": "bold red"}


def print_json(value: Any) -> None:  # noqa: ANN401  whatever json takes
    """One value on one line, at once: whoever follows must not wait for a full buffer."""
    print(json.dumps(value, separators=(",", ":"), ensure_ascii=False), flush=True)


def print_table(header: Row, rows: Sequence[Row], *, right: Sequence[int] = ()) -> None:
    """A table on stdout; `right` holds the numbers of the columns that hold numbers."""
    if sys.stdout.isatty():
        _print_rich_table(header, rows, right)
        return
    widths = [max(len(row[idx]) for row in (header, *rows)) for idx in range(len(header))]
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if idx in right else cell.ljust(width)
            for idx, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _print_rich_table(header: Row, rows: Sequence[Row], right: Sequence[int]) -> None:
    from rich.console import Console  # noqa: PLC0415  a tenth of a second that JSON and errors need not wait
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for idx, title in enumerate(header):
        table.add_column(title, justify="right" if idx in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STATE_STYLES.get(cell, "")) for cell in row))
    Console().print(table)


def mib(size_bytes: int) -> str:
    """Bytes as MiB with one decimal."""
    return f"{size_bytes / (1 << 20):.1f} MiB"


def pages(status: StatusKeys, key: str) -> str:
    """A page count of the status as "2.0 MiB (512 pages)"."""
    count = status.get(key, 0)
    return f"{mib(count * status.get('PageSize', 4096))} ({count} pages)"


def operation_text(status: StatusKeys) -> str:
    """The running operation with its progress, "-" if there is none."""
    operation = one_line(str(status.get("Operation", "")))
    if not operation:
        return "-"
    total = status.get("TotalPages", 0)
    return f"{operation} {100 * status.get('ProgressPages', 0) // total} %" if total else operation


LIST_HEADER = ("NAME", "STATE", "OPERATION", "RESIDENT", "SWAPPED", "STORED", "FAULTS", "ERROR")
LIST_RIGHT = (3, 4, 5, 6)


def list_row(status: StatusKeys) -> Row:
    """One VM as a row under LIST_HEADER."""
    page_bytes = status.get("PageSize", 4096)
    return (
        str(status.get("Name", "")),
        one_line(str(status.get("State", ""))),
        operation_text(status),
        mib(status.get("ResidentPages", 0) * page_bytes),
        mib(status.get("SwapPages", 0) * page_bytes),
        mib(status.get("StoredBytes", 0)),
        str(status.get("FaultCount", 0)),
        one_line(str(status.get("Error", ""))) or "-",
    )


def status_rows(status: StatusKeys) -> list[Row]:
    """One VM in full, as rows of a name and a value."""
    number = status.get
    rows: list[Row] = [
        ("State", one_line(str(number("State", "")))),
        ("Operation", operation_text(status)),
    ]
    if number("Operation"):
        rows.append(("Progress", f"{number('ProgressPages', 0)} of {number('TotalPages', 0)} pages"))
    rows += [
        (row.title, value_text(status, row))
        for row in KEYS
        if row.title and (number(row.key) or not row.shown_if_set)
    ]
    rows += [
        ("Faults", f"{number('FaultCount', 0)}, median {number('FaultP50Us', 0)} us, 99th percentile "
                   f"{number('FaultP99Us', 0)} us"),
        ("Last swap-out", f"{number('SwapTimeMs', 0)} ms, guest stopped for {number('PauseUs', 0)} us at most"
                          + (f", {one_line(str(number('Mode')))}" if number("Mode") else "")),
    ]  # fmt: skip
    return rows


def value_text(status: StatusKeys, row: StatusKey) -> str:
    """The value of one key, as its unit and type want it."""
    if row.unit == "pages":
        return pages(status, row.key)
    if row.unit == "bytes":
        return mib(status.get(row.key, 0))
    if row.signature == "b":
        return "on" if status.get(row.key) else "off"
    value = one_line(str(status.get(row.key, 0 if row.kind is not Kind.TEXT else "")))
    return f"{value} {row.unit}" if row.unit in ("ms", "us") else value


def change_line(status: StatusKeys) -> str:
    """One change of a VM, as `monitor` prints it after the time."""
    text = (
        f"{status.get('Name', '')} {one_line(str(status.get('State', '')))} {operation_text(status)}, "
        f"resident {pages(status, 'ResidentPages')}, swapped {pages(status, 'SwapPages')}"
    )
    return text + (f", error: {one_line(str(status['Error']))}" if status.get("Error") else "")
