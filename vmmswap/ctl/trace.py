# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmmswapctl trace`: page-fault traces from the journal or from a trace file, exported or counted."""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vmmswap import message_ids
from vmmswap import trace_format as tf
from vmmswap.ctl.failure import CtlError, ExitStatus, one_line
from vmmswap.ctl.output import mib, print_json, print_table
from vmmswap.errors import ProtocolError
from vmmswap.names import LOG_DIR, check_name

FILE_NAME = "page_fault.log"
_NANOS = 1_000_000_000


def run(args: argparse.Namespace) -> None:
    """Export or count the newest trace of one VM."""
    path = (args.log_dir or LOG_DIR) / check_name(args.name) / FILE_NAME
    source = args.source or ("file" if _is_there(path) else "journal")
    opened = _open_file(path) if source == "file" else _open_journal(args.name)
    try:
        with opened as (header, faults):
            if args.action == "export":
                _export(header, faults)
            else:
                _print_stats(header, faults, as_json=args.json)
    except ProtocolError as error:
        where = path if source == "file" else "the journal"
        raise CtlError(
            ExitStatus.FAILED, (f"{where} holds a broken trace: {error}; start logging again")
        ) from error


def _is_there(path: Path) -> bool:
    """Also where it may not be looked at: opening it says so."""
    try:
        return path.exists()
    except PermissionError:
        return True


def _export(header: tf.TraceHeader, faults: Iterable[tf.Fault]) -> None:
    sys.stdout.write(tf.header_line(header) + "\n")
    for fault in faults:
        sys.stdout.write(tf.fault_line(fault) + "\n")


@contextlib.contextmanager
def _open_file(path: Path) -> Iterator[tuple[tf.TraceHeader, Iterator[tf.Fault]]]:
    try:
        file = path.open(encoding="ascii", errors="replace")
    except OSError as error:
        raise CtlError(
            ExitStatus.NOT_ALLOWED if isinstance(error, PermissionError) else ExitStatus.FAILED,
            f"cannot read {path}: {error.strerror}; "
            + (
                "try as root, or use --from journal"
                if isinstance(error, PermissionError)
                else "`vmmswapctl log start` makes it; or use --from journal"
            ),
        ) from error
    with file:
        yield tf.parse_lines(file)


# The journal


def journal_command(name: str, *matches: str) -> list[str]:
    """The journalctl command that prints a VM's trace entries, oldest first.

    Anybody may write such fields to the journal, but not _UID: root's entries and one's own are believed.
    --all, or journalctl leaves out any field above 4 KiB.
    """
    uids = {f"_UID={uid}" for uid in (0, os.geteuid())}
    return [
        "journalctl", "--quiet", "--no-pager", "--all", "--output=json",
        f"{tf.FIELD_VM}={name}", *sorted(uids), *matches,
    ]  # fmt: skip


@contextlib.contextmanager
def _open_journal(name: str) -> Iterator[tuple[tf.TraceHeader, Iterator[tf.Fault]]]:
    with _entries(journal_command(name, f"MESSAGE_ID={message_ids.TRACE_HEADER}", "--lines=1")) as found:
        newest = next(found, None)
    if newest is None:
        raise CtlError(
            ExitStatus.FAILED,
            f"the journal holds no page-fault trace of {name}: `vmmswapctl log start {name}` begins one "
            "(reading it needs root or group systemd-journal)",
        )
    header = tf.parse_header(str(newest.get(tf.FIELD_HEADER, "")))
    trace_id = str(newest.get(tf.FIELD_TRACE, ""))
    with _entries(
        journal_command(name, f"MESSAGE_ID={message_ids.TRACE_BATCH}", f"{tf.FIELD_TRACE}={trace_id}")
    ) as batches:
        yield header, faults_of(batches)


def faults_of(entries: Iterable[dict[str, Any]]) -> Iterator[tf.Fault]:
    """The faults of a trace's batch entries; at the end CtlError if some batches were missing."""
    expected = missing = 0
    for entry in entries:
        sequence = str(entry.get(tf.FIELD_SEQUENCE, ""))
        if not (sequence.isascii() and sequence.isdigit()) or int(sequence) < expected:
            raise ProtocolError(f"trace batch number {sequence[:20]!r}, expected {expected}")
        missing += int(sequence) - expected
        expected = int(sequence) + 1
        yield from tf.decode_batch(str(entry.get(tf.FIELD_FAULTS, "")))
    if missing:
        raise CtlError(
            ExitStatus.FAILED,
            f"{missing} batches of this trace are missing from the journal, the rest is complete: raise "
            "RateLimitBurst= or SystemMaxUse= in journald.conf",
        )


@contextlib.contextmanager
def _entries(command: list[str]) -> Iterator[Iterator[dict[str, Any]]]:
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError as error:
        raise CtlError(
            ExitStatus.FAILED, "journalctl is not installed: read the trace file with --from file"
        ) from error
    with process:
        assert process.stdout is not None  # noqa: S101  PIPE was asked for
        try:
            yield _parse_entries(process.stdout)
        except BaseException:
            process.kill()
            raise
        _, complaint = process.communicate()
    if process.returncode > 0:
        raise CtlError(ExitStatus.FAILED, f"journalctl failed: {one_line(complaint)}; try --from file")


def _parse_entries(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ProtocolError(f"journalctl printed {line[:60]!r}, which is not JSON") from error
        yield entry


# Counting


def _print_stats(header: tf.TraceHeader, faults: Iterable[tf.Fault], *, as_json: bool) -> None:
    stats = count(header, faults)
    if as_json:
        print_json(stats)
        return
    busiest = f"{stats['BusiestSecondFaults']} faults, {stats['BusiestSecond']} s after the start"
    refaults = f"{stats['Refaults']} ({stats['Faults'] and 100 * stats['Refaults'] // stats['Faults']} %)"
    print_table(
        ("TRACE", ""),
        [
            ("Faults", str(stats["Faults"])),
            ("Duration", f"{stats['DurationMs'] / 1000:.1f} s"),
            ("Faults per second", f"{stats['FaultsPerSecond']:.1f}"),
            ("Busiest second", busiest),
            ("Pages", f"{stats['UniquePages']} ({mib(stats['UniquePages'] * mmap.PAGESIZE)})"),
            ("Faults on a page seen before", refaults),
            ("Outside all regions", str(stats["OutsideRegions"])),
        ],
    )  # fmt: skip
    print()
    rows = [
        (f"{item['BaseAddress']:#x}", mib(item["Bytes"]), str(item["Faults"]), str(item["UniquePages"]))
        for item in stats["Regions"]
    ]
    print_table(("REGION", "SIZE", "FAULTS", "PAGES"), rows, right=(1, 2, 3))
    print()
    print_table(
        ("PROCESS", "FAULTS"), [(key, str(value)) for key, value in stats["Processes"].items()], right=(0, 1)
    )


def count(header: tf.TraceHeader, faults: Iterable[tf.Fault]) -> dict[str, Any]:
    """What `trace stats` tells, regions with the most faults first. Keeps one number a page, not the faults.

    Pages are counted by process and address: the header's regions are the VMM's own addresses, and other
    processes have theirs, which count as outside.
    """
    pages: Counter[tuple[int, int]] = Counter()
    seconds: Counter[int] = Counter()
    last_nanos = 0
    for fault in faults:
        pages[fault.id_uffd, fault.address // mmap.PAGESIZE] += 1
        seconds[fault.elapsed_nanos // _NANOS] += 1
        last_nanos = max(last_nanos, fault.elapsed_nanos)
    total = pages.total()
    processes: Counter[int] = Counter()
    for (process, _), times in pages.items():
        processes[process] += times
    regions = sorted(
        (_count_region(region, pages) for region in header.regions), key=lambda item: -item["Faults"]
    )
    busiest, most = max(seconds.items(), key=lambda item: item[1], default=(0, 0))
    return {
        "BaseTimestampMs": header.base_timestamp,
        "Faults": total,
        "DurationMs": last_nanos // 1_000_000,
        "FaultsPerSecond": round(total / (last_nanos / _NANOS), 1) if last_nanos else 0.0,
        "BusiestSecond": busiest,
        "BusiestSecondFaults": most,
        "UniquePages": len(pages),
        "Refaults": total - len(pages),
        "OutsideRegions": total - sum(item["Faults"] for item in regions),
        "Regions": regions,
        "Processes": {str(process): times for process, times in sorted(processes.items())},
    }


def _count_region(region: tf.TraceRegion, pages: Counter[tuple[int, int]]) -> dict[str, int]:
    inside = [
        times
        for (_, page), times in pages.items()
        if region.base_address <= page * mmap.PAGESIZE < region.base_address + region.len
    ]
    return {
        "BaseAddress": region.base_address,
        "Bytes": region.len,
        "Faults": sum(inside),
        "UniquePages": len(inside),
    }
