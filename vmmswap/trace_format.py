# SPDX-License-Identifier: GPL-2.0-or-later
"""Page-fault traces: the seed's JSON lines for files, and batches of faults for the journal.

A trace is one header and then the faults in the order in which they were served. In a file, line 1 is the
header and each further line one fault. In the journal a trace has a random id: one entry holds the header
(the same JSON line), each further entry a batch of up to BATCH_FAULTS faults, numbered from 0 so that a lost
entry is noticed. Both forms hold the same numbers, so that the lines made from the journal equal the file's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vmmswap import message_ids
from vmmswap.errors import ProtocolError

BATCH_FAULTS: Final = 4096  # most faults in one journal entry
BATCH_MS: Final = 250  # a batch is sent after this time, however small

FIELD_VM: Final = "VMMSWAP_VM"
FIELD_TRACE: Final = "VMMSWAP_TRACE"  # the trace's id: 32 hex digits, equal in all its entries
FIELD_SEQUENCE: Final = "VMMSWAP_TRACE_SEQUENCE"  # decimal, the batch's number from 0
FIELD_HEADER: Final = "VMMSWAP_TRACE_HEADER"  # the header's JSON line
FIELD_FAULTS: Final = "VMMSWAP_TRACE_FAULTS"  # encode_batch()

_U64: Final = 1 << 64
_U32: Final = 1 << 32
_RECORD: Final = re.compile(r"(-?[0-9a-f]{1,16}),(-?[0-9a-f]{1,16}),([0-9a-f]{1,8})", re.ASCII)


@dataclass(frozen=True, slots=True)
class TraceRegion:
    """A region of guest memory in the VMM's address space; both in bytes."""

    base_address: int
    len: int


@dataclass(frozen=True, slots=True)
class TraceHeader:
    """When a trace began (Unix time, ms), and where guest memory was."""

    base_timestamp: int
    regions: tuple[TraceRegion, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """One page fault: ns since the header's time, the raw address, the number of the process (0: the VMM)."""

    elapsed_nanos: int
    address: int
    id_uffd: int


def header_line(header: TraceHeader) -> str:
    """The header as the first line of a trace file, without the newline."""
    regions = ",".join(f'{{"base_address":{item.base_address},"len":{item.len}}}' for item in header.regions)
    return f'{{"base_timestamp":{header.base_timestamp},"regions":[{regions}]}}'


def fault_line(fault: Fault) -> str:
    """A fault as one line of a trace file, without the newline."""
    return f'{{"elapsed_nanos":{fault.elapsed_nanos},"address":{fault.address},"id_uffd":{fault.id_uffd}}}'


def parse_header(line: str) -> TraceHeader:
    """The header from its JSON line. Raises ProtocolError."""
    value = _object(line, "header")
    regions = value.get("regions")
    if not isinstance(regions, list):
        raise ProtocolError("trace header: regions is not a list")
    return TraceHeader(
        _number(value, "base_timestamp", _U64),
        tuple(
            TraceRegion(_number(item, "base_address", _U64), _number(item, "len", _U64)) for item in regions
        ),
    )


def parse_fault(line: str) -> Fault:
    """A fault from its JSON line. Raises ProtocolError."""
    value = _object(line, "fault")
    return Fault(
        _number(value, "elapsed_nanos", _U64),
        _number(value, "address", _U64),
        _number(value, "id_uffd", _U32),
    )


def encode_batch(faults: Sequence[Fault]) -> str:
    """Faults as one journal field: text, about 17 bytes a fault.

    Records are separated by spaces; each is "time,address,process" in hexadecimal, time and address as the
    difference to the record before (0 before the first). A difference may be negative: several threads serve.
    """
    if len(faults) > BATCH_FAULTS:
        raise ValueError(f"{len(faults)} faults in a batch: at most {BATCH_FAULTS}")
    records = []
    elapsed_nanos = address = 0
    for fault in faults:
        time_step, address_step = fault.elapsed_nanos - elapsed_nanos, fault.address - address
        records.append(f"{time_step:x},{address_step:x},{fault.id_uffd:x}")
        elapsed_nanos, address = fault.elapsed_nanos, fault.address
    return " ".join(records)


def decode_batch(text: str) -> list[Fault]:
    """The faults of encode_batch. Raises ProtocolError: anybody can write to the journal."""
    records = text.split(" ", BATCH_FAULTS) if text else []
    if len(records) > BATCH_FAULTS:
        raise ProtocolError(f"trace batch: more than {BATCH_FAULTS} faults")
    faults = []
    elapsed_nanos = address = 0
    for record in records:
        match = _RECORD.fullmatch(record)
        if match is None:
            raise ProtocolError(f"trace batch: {record[:60]!r} is not a fault")
        elapsed_nanos += int(match[1], 16)
        address += int(match[2], 16)
        if not (0 <= elapsed_nanos < _U64 and 0 <= address < _U64):
            raise ProtocolError(f"trace batch: {record!r} leads to a number below 0 or above 64 bits")
        faults.append(Fault(elapsed_nanos, address, int(match[3], 16)))
    return faults


def header_fields(vm: str, trace_id: str, header: TraceHeader) -> dict[str, str]:
    """The journal entry that begins a trace, for systemd.journal.send(**fields)."""
    return {
        "MESSAGE": f"{vm}: page-fault trace {trace_id} begins",
        "MESSAGE_ID": message_ids.TRACE_HEADER,
        FIELD_VM: vm,
        FIELD_TRACE: trace_id,
        FIELD_HEADER: header_line(header),
    }


def batch_fields(vm: str, trace_id: str, sequence: int, faults: Sequence[Fault]) -> dict[str, str]:
    """The journal entry of one batch, for systemd.journal.send(**fields)."""
    return {
        "MESSAGE": f"{vm}: {len(faults)} page faults",
        "MESSAGE_ID": message_ids.TRACE_BATCH,
        FIELD_VM: vm,
        FIELD_TRACE: trace_id,
        FIELD_SEQUENCE: str(sequence),
        FIELD_FAULTS: encode_batch(faults),
    }


def parse_lines(lines: Iterable[str]) -> tuple[TraceHeader, Iterator[Fault]]:
    """A trace file's header and its faults, read lazily. Raises ProtocolError, with the line's number."""
    numbered = enumerate(lines, 1)
    _, first = next(numbered, (1, ""))
    if not first.strip():
        raise ProtocolError("the trace is empty: it has no header line")
    return parse_header(first), _parse_faults(numbered)


def _parse_faults(numbered: Iterable[tuple[int, str]]) -> Iterator[Fault]:
    for number, line in numbered:
        if not line.endswith("\n"):  # the writer was stopped, or is just writing
            return
        try:
            yield parse_fault(line)
        except ProtocolError as error:
            raise ProtocolError(f"line {number}: {error}") from error


def _object(line: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"trace {what}: not JSON: {line[:60]!r}") from error
    if not isinstance(value, dict):
        raise ProtocolError(f"trace {what}: not a JSON object: {line[:60]!r}")
    return value


def _number(value: Any, key: str, limit: int) -> int:  # noqa: ANN401  whatever JSON holds
    number = value.get(key) if isinstance(value, dict) else None
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < limit:
        raise ProtocolError(f"trace: {key} is not a whole number from 0 to {limit - 1}")
    return number
