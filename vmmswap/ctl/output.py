# SPDX-License-Identifier: GPL-2.0-or-later
"""What vmmswapctl prints: tables for people (in colour on a terminal, else plain), JSON for programs."""

from __future__ import annotations

import json
import pwd
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vmmswap import __version__
from vmmswap.ctl.failure import one_line
from vmmswap.status import KEYS, State
from vmmswap.status_key import Kind, StatusKey

StatusKeys = Mapping[str, Any]  # Status() as it came over the bus, variants unwrapped
Row = Sequence[str]

_STATE_STYLES = {"Ready": "green", "Active": "cyan", "InProgress": "yellow", "Failed": "bold red"}


def print_json(value: Any) -> None:  # noqa: ANN401  whatever json takes
    """One value on one line, at once: whoever follows must not wait for a full buffer."""
    print(json.dumps(value, separators=(",", ":"), ensure_ascii=False), flush=True)


def print_table(header: Row | None, rows: Sequence[Row], *, right: Sequence[int] = ()) -> None:
    """A table on stdout; `right` holds the numbers of the columns that hold numbers."""
    lines = rows if header is None else [header, *rows]
    if not lines:
        return
    if sys.stdout.isatty():
        _print_rich_table(header, rows, right)
        return
    widths = [max(len(row[idx]) for row in lines) for idx in range(len(lines[0]))]
    for row in lines:
        cells = [
            cell.rjust(width) if idx in right else cell.ljust(width)
            for idx, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _print_rich_table(header: Row | None, rows: Sequence[Row], right: Sequence[int]) -> None:
    from rich.console import Console  # noqa: PLC0415  a tenth of a second that JSON and errors need not wait
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=header is not None)
    for idx, title in enumerate(header or [""] * len(rows[0])):
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
    if status.get("Queued"):
        return f"{operation} waits"
    total = status.get("TotalPages", 0)
    return f"{operation} {100 * status.get('ProgressPages', 0) // total} %" if total else operation


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `list`: its title, a VM's cell, and what rows are sorted by. Numbers stand to the right."""

    title: str
    text: Callable[[StatusKeys], str]
    order: Callable[[StatusKeys], Any]
    is_number: bool = False


def _text_column(title: str, text: Callable[[StatusKeys], str]) -> Column:
    return Column(title, text, text)


def _key_column(title: str, key: str) -> Column:
    return _text_column(title, lambda status: one_line(str(status.get(key, ""))) or "-")


def _number_column(title: str, key: str) -> Column:
    return Column(title, lambda status: str(status.get(key, 0)), lambda status: status.get(key, 0), True)


def _pages_column(title: str, key: str) -> Column:
    def size_bytes(status: StatusKeys) -> int:
        return int(status.get(key, 0)) * int(status.get("PageSize", 4096))

    return Column(title, lambda status: mib(size_bytes(status)), size_bytes, True)


def state_text(status: StatusKeys) -> str:
    """The state, or that nobody has come yet. Active with nothing out is said to be that."""
    if status.get("Listening") or not (status.get("Pid", 1) or status.get("TotalPages", 0)):
        return "no VMM yet"
    state = one_line(str(status.get("State", ""))) or "-"
    if state == State.ACTIVE and not status.get("SwapPages", 1):
        return f"{state}, all back"
    return state


def _user(status: StatusKeys) -> str:
    """The owner by name, as ls has it; "-" where there is no VM."""
    if "OwnerUid" not in status:
        return "-"
    uid = int(status["OwnerUid"])
    try:
        return one_line(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return str(uid)


def _bytes_column(title: str, key: str) -> Column:
    def size_bytes(status: StatusKeys) -> int:
        return int(status.get(key, 0))

    return Column(title, lambda status: mib(size_bytes(status)), size_bytes, True)


COLUMNS: dict[str, Column] = {
    "name": _text_column("NAME", lambda status: str(status.get("Name", ""))),
    "state": _text_column("STATE", state_text),
    "operation": _text_column("OPERATION", operation_text),
    "pid": Column(
        "PID", lambda status: str(status.get("Pid", 0) or "-"), lambda status: status.get("Pid", 0), True
    ),
    "owner": _text_column("OWNER", _user),
    "origin": _key_column("ORIGIN", "Origin"),
    "size": _pages_column("SIZE", "TotalPages"),
    "resident": _pages_column("RESIDENT", "ResidentPages"),
    "swapped": _pages_column("SWAPPED", "SwapPages"),
    "stored": _bytes_column("STORED", "StoredBytes"),
    "freed": _bytes_column("FREED", "NetFreedBytes"),
    "faults": _number_column("FAULTS", "FaultCount"),
    "restarts": _number_column("RESTARTS", "Restarts"),
    "version": _key_column("VERSION", "Version"),
    "error": _key_column("ERROR", "Error"),
}
DEFAULT_COLUMNS = (
    "name", "state", "operation", "pid", "owner", "size", "resident", "swapped", "stored", "faults", "error",
)  # fmt: skip


def print_list(statuses: Sequence[StatusKeys], columns: Sequence[str], *, legend: bool) -> None:
    """A row for each VM; with the legend titles above and totals below."""
    chosen = [COLUMNS[name] for name in columns]
    rows = [[column.text(status) for column in chosen] for status in statuses]
    right = [idx for idx, column in enumerate(chosen) if column.is_number]
    print_table([column.title for column in chosen] if legend else None, rows, right=right)
    if legend:
        print(f"\n{totals(statuses)}")
        if old := [
            str(status["Name"]) for status in statuses if status.get("Version", __version__) != __version__
        ]:
            print(f"{len(old)} run another version than this vmmswapctl ({__version__}): {', '.join(old)}")


def totals(statuses: Sequence[StatusKeys]) -> str:
    """What all VMs together have, in one line."""

    def sum_of(key: str) -> str:
        return mib(sum(int(status.get(key, 0)) * int(status.get("PageSize", 4096)) for status in statuses))

    stored = mib(sum(int(status.get("StoredBytes", 0)) for status in statuses))
    vms = "1 VM" if len(statuses) == 1 else f"{len(statuses)} VMs"
    return (
        f"{vms}: {sum_of('TotalPages')} of guest memory, {sum_of('ResidentPages')} resident, "
        f"{sum_of('SwapPages')} swapped out, {stored} stored"
    )


def status_rows(status: StatusKeys) -> list[Row]:
    """One VM in full, as rows of a name and a value."""
    number = status.get
    rows: list[Row] = [
        ("State", state_text(status)),
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
        ("Last swap-out or swap-in", f"{number('SwapTimeMs', 0)} ms"),
        ("Last swap-out", f"longest pause {number('PauseUs', 0)} us"
                          + (f", {one_line(str(number('Mode')))}" if number("Mode") else "")),
    ]  # fmt: skip
    return rows


def value_text(status: StatusKeys, row: StatusKey) -> str:
    """The value of one key, as its unit and type want it."""
    if row.unit == "pages":
        return pages(status, row.key)
    if row.key == "CompressedBytes":
        return mib(status.get(row.key, 0)) + _ratio(status)
    if row.unit == "bytes":
        return mib(status.get(row.key, 0))
    if row.signature == "b":
        return "on" if status.get(row.key) else "off"
    value = one_line(str(status.get(row.key, 0 if row.kind is not Kind.TEXT else "")))
    return f"{value} {row.unit}" if row.unit in ("ms", "us") else value


def _ratio(status: StatusKeys) -> str:
    """How many times smaller what is stored has become. Older monitors do not say how many pages it is."""
    before_bytes = status.get("StoredPages", 0) * status.get("PageSize", 4096)
    after_bytes = status.get("CompressedBytes", 0)
    return f" ({before_bytes / after_bytes:.1f} : 1)" if before_bytes and after_bytes else ""


def change_line(status: StatusKeys) -> str:
    """One change of a VM, as `monitor` prints it after the time."""
    text = (
        f"{status.get('Name', '')} {one_line(str(status.get('State', '')))} {operation_text(status)}, "
        f"resident {pages(status, 'ResidentPages')}, swapped {pages(status, 'SwapPages')}"
    )
    if status.get("LimitedBy"):
        text += f", limited by {one_line(str(status['LimitedBy']))}"
    return text + (f", error: {one_line(str(status['Error']))}" if status.get("Error") else "")
