# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces come back from the journal's form, and from the file's, number for number."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmswap import message_ids
from vmmswap import trace_format as tf
from vmmswap.errors import ProtocolError

U64 = st.integers(0, 2**64 - 1)
FAULTS = st.builds(tf.Fault, U64, U64, st.integers(0, 2**32 - 1))
HEADERS = st.builds(tf.TraceHeader, U64, st.lists(st.builds(tf.TraceRegion, U64, U64), max_size=5).map(tuple))


@given(st.lists(FAULTS, max_size=50))
def test_a_batch_comes_back(faults):
    assert tf.decode_batch(tf.encode_batch(faults)) == faults


@given(HEADERS, st.lists(FAULTS, max_size=20))
def test_lines_come_back(header, faults):
    lines = [tf.header_line(header) + "\n", *(tf.fault_line(fault) + "\n" for fault in faults)]
    parsed_header, parsed = tf.parse_lines(lines)
    assert (parsed_header, list(parsed)) == (header, faults)


def test_lines_are_the_seeds():
    header = tf.TraceHeader(1672531200123, (tf.TraceRegion(4096, 8192), tf.TraceRegion(65536, 4096)))
    assert tf.header_line(header) == (
        '{"base_timestamp":1672531200123,"regions":[{"base_address":4096,"len":8192},{"base_address":65536,"len":4096}]}'
    )
    assert (
        tf.fault_line(tf.Fault(1500, 139637976727555, 2))
        == '{"elapsed_nanos":1500,"address":139637976727555,"id_uffd":2}'
    )
    compact = json.dumps(json.loads(tf.header_line(header)), separators=(",", ":"))
    assert compact == tf.header_line(header)


def test_a_batch_has_a_limit():
    fault = tf.Fault(1, 2, 3)
    full = tf.encode_batch([fault] * tf.BATCH_FAULTS)
    assert len(tf.decode_batch(full)) == tf.BATCH_FAULTS
    with pytest.raises(ValueError, match="4097 faults"):
        tf.encode_batch([fault] * (tf.BATCH_FAULTS + 1))
    with pytest.raises(ProtocolError, match="more than 4096"):
        tf.decode_batch(full + " 0,0,0")


@pytest.mark.parametrize(
    "text",
    [
        " ",
        "1,2",
        "1,2,3,4",
        "g,0,0",
        "-1,0,0",
        "0,-1,0",
        "1,2,-3",
        "1,2,3 ",
        "\uff11,2,3",
        "ffffffffffffffff,0,0 1,0,0",
    ],
)
def test_a_batch_that_is_none(text):
    with pytest.raises(ProtocolError):
        tf.decode_batch(text)


@given(st.text())
def test_any_text_is_a_batch_or_refused(text):
    try:
        faults = tf.decode_batch(text)
    except ProtocolError:
        return
    assert tf.decode_batch(tf.encode_batch(faults)) == faults


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        '{"base_timestamp":1}',
        '{"base_timestamp":1,"regions":[3]}',
        '{"base_timestamp":true,"regions":[]}',
        '{"base_timestamp":-1,"regions":[]}',
        '{"base_timestamp":1.5,"regions":[]}',
        "[" * 100_000,
    ],
)
def test_a_header_that_is_none(line):
    with pytest.raises(ProtocolError):
        tf.parse_header(line)


def test_a_bad_line_is_named():
    lines = [tf.header_line(tf.TraceHeader(0, ())) + "\n", tf.fault_line(tf.Fault(1, 2, 3)) + "\n", "bad\n"]
    _, faults = tf.parse_lines(lines)
    with pytest.raises(ProtocolError, match="line 3"):
        list(faults)


def test_a_last_line_cut_short_is_left_out():
    lines = [
        tf.header_line(tf.TraceHeader(0, ())) + "\n",
        tf.fault_line(tf.Fault(1, 2, 3)) + "\n",
        '{"elapsed_na',
    ]
    _, faults = tf.parse_lines(lines)
    assert list(faults) == [tf.Fault(1, 2, 3)]


def test_journal_fields():
    fields = tf.batch_fields("web", "ab" * 16, 7, [tf.Fault(16, 4096, 0)])
    assert fields["VMMSWAP_VM"] == "web"
    assert fields["VMMSWAP_TRACE_SEQUENCE"] == "7"
    assert fields["VMMSWAP_TRACE_FAULTS"] == "10,1000,0"
    assert fields["MESSAGE_ID"] == message_ids.TRACE_BATCH
    assert all(
        re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name) for name in fields
    )  # what journald takes as a field


def test_message_ids_are_distinct_128_bit_ids():
    assert len(set(message_ids.ALL.values())) == len(message_ids.ALL)
    assert all(re.fullmatch(r"[0-9a-f]{32}", value) for value in message_ids.ALL.values())
