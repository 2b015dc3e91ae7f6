# SPDX-License-Identifier: GPL-2.0-or-later
"""Untrusted messages: what is accepted, what is refused and which field the refusal names."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmswap.errors import InvalidRegionError, NotSupportedError, ProtocolError, VmmswapError
from vmmswap.handoff import messages
from vmmswap.handoff.messages import (
    MAX_REGIONS,
    MAX_TOTAL_BYTES,
    AddProcess,
    AddRegion,
    Attach,
    FirecrackerRegister,
    Register,
    RemoveRegion,
)
from vmmswap.handoff.region import PAGE_SIZE, Region, private_region

ADDR = 0x7F0000000000


def region(**changes):
    base = {"base_host_virt_addr": ADDR, "size": 1 << 30, "offset": 0, "page_size": PAGE_SIZE, "memfd": 0}
    return {**base, **changes}


def register(*regions, **more):
    message = {"vmmswap": 1, "type": "register", "regions": list(regions or [region()]), **more}
    return json.dumps({key: value for key, value in message.items() if value is not ...}).encode()


def refusal(data, fd_count=2, parse=messages.parse):
    with pytest.raises(VmmswapError) as caught:
        parse(data, fd_count)
    return caught.value


def test_register_as_in_the_contract():
    data = b"""{"vmmswap":1,"type":"register","regions":[
         {"base_host_virt_addr":139637976727552,"size":1073741824,"offset":0,"page_size":4096,"memfd":0}],
        "dummy_page":139637976723456}"""
    assert messages.parse(data, 2) == Register(
        (Region(139637976727552, 1 << 30, 0, 0),), memfd_count=1, dummy_page=139637976723456
    )


def test_optional_fields_of_register():
    parsed = messages.parse(register(pins=False, qmp="/run/vm.qmp"), 2)
    assert isinstance(parsed, Register)
    assert (parsed.pins, parsed.qmp, parsed.dummy_page) == (False, "/run/vm.qmp", None)


def test_unknown_fields_are_ignored():
    assert messages.parse(register(region(colour="red"), later={"x": [1.5, None]}), 2) == messages.parse(
        register(), 2
    )


def test_several_regions_of_several_memfds():
    regions = [
        region(),
        region(base_host_virt_addr=ADDR + (2 << 30), offset=1 << 30),
        region(base_host_virt_addr=ADDR + (4 << 30), memfd=1),
    ]
    parsed = messages.parse(register(*regions), 3)
    assert isinstance(parsed, Register)
    assert parsed.memfd_count == 2
    assert [item.offset_bytes for item in parsed.regions] == [0, 1 << 30, 0]


def test_last_page_of_the_address_space_is_no_wrap_around():
    last = (1 << 64) - PAGE_SIZE
    parsed = messages.parse(register(region(base_host_virt_addr=last, size=PAGE_SIZE)), 2)
    assert isinstance(parsed, Register)
    assert parsed.regions[0].end == 1 << 64


def test_the_other_types():
    item = [region()]
    one = (Region(ADDR, 1 << 30, 0, 0),)
    assert messages.parse(json.dumps({"type": "add-process", "regions": item}).encode(), 2) == AddProcess(one)
    add = json.dumps({"type": "add-region", "regions": item}).encode()
    assert messages.parse(add, 1) == AddRegion(one, 1, has_uffd=False)
    assert messages.parse(add, 2) == AddRegion(one, 1, has_uffd=True)
    assert messages.parse(json.dumps({"type": "remove-region", "regions": item}).encode(), 0) == RemoveRegion(
        one
    )
    assert messages.parse(b'{"vmmswap":1,"type":"attach"}', 1) == Attach()
    assert messages.parse(b'{"vmmswap":1,"type":"attach","force":true}', 1) == Attach(force=True)


def test_encode_gives_what_parse_takes():
    regions = (Region(ADDR, 8 * PAGE_SIZE, PAGE_SIZE, 0), Region(ADDR + 8 * PAGE_SIZE, PAGE_SIZE, 0, 1))
    data = messages.encode("register", regions, dummy_page=PAGE_SIZE, pins=False, qmp=None)
    assert data.endswith(b"\n")
    assert messages.parse(data, 3) == Register(regions, 2, PAGE_SIZE, pins=False)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"size": 4097}, InvalidRegionError, "regions[0].size: 4097 is not a multiple of the page size 4096"),
        ({"size": 0}, InvalidRegionError, "regions[0].size: 0 is not 1 page"),
        ({"size": -4096}, InvalidRegionError, "regions[0].size: -4096 is negative"),
        ({"size": MAX_TOTAL_BYTES + PAGE_SIZE}, InvalidRegionError, "regions[0].size: "),
        ({"size": True}, ProtocolError, "regions[0].size: true is not an integer"),
        ({"size": 4096.0}, ProtocolError, "regions[0].size: 4096.0 is not an integer"),
        ({"size": "4096"}, ProtocolError, 'regions[0].size: "4096" is not an integer'),
        ({"size": None}, ProtocolError, "regions[0].size: null is not an integer"),
        ({"size": [1]}, ProtocolError, "regions[0].size: an array is not an integer"),
        ({"size": 1 << 64}, ProtocolError, "regions[0].size: 18446744073709551616 does not fit 64 bits"),
        ({"size": 10**400}, ProtocolError, "(401 digits) does not fit 64 bits"),
        ({"base_host_virt_addr": ADDR + 1}, InvalidRegionError, "regions[0].base_host_virt_addr: "),
        (
            {"base_host_virt_addr": 0},
            InvalidRegionError,
            "regions[0].base_host_virt_addr: 0 is not an address",
        ),
        ({"base_host_virt_addr": (1 << 64) - PAGE_SIZE}, InvalidRegionError, "wraps around"),
        ({"offset": 1}, InvalidRegionError, "regions[0].offset: 1 is not a multiple"),
        ({"offset": (1 << 63) - PAGE_SIZE}, InvalidRegionError, "regions[0].offset: "),
        ({"page_size": 2 << 20}, InvalidRegionError, "regions[0].page_size: 2097152 is not 4096"),
        ({"memfd": -1}, ProtocolError, "regions[0].memfd: -1 is not 0 to 252"),
        ({"memfd": 253}, ProtocolError, "regions[0].memfd: 253 is not 0 to 252"),
        ({"memfd": 1}, ProtocolError, "no region uses memfd 0"),
        ({"memfd": False}, ProtocolError, "regions[0].memfd: false is not an integer"),
    ],
)
def test_bad_field_is_named(changes, error, message):
    caught = refusal(register(region(**changes)))
    assert type(caught) is error
    assert message in caught.message


@pytest.mark.parametrize("key", ["base_host_virt_addr", "size", "offset", "page_size", "memfd"])
def test_missing_field_is_named(key):
    item = region()
    del item[key]
    assert refusal(register(item)).message == f"regions[0].{key}: missing"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"vmmswap": ...}, "vmmswap: missing"),
        ({"vmmswap": True}, "vmmswap: true is not an integer"),
        ({"type": ...}, "type: missing"),
        ({"type": "explode"}, 'type: "explode" is none of'),
        ({"type": "x" * 1000}, "... is none of"),
        ({"type": 7}, "type: 7 is not a string"),
        ({"regions": ...}, "regions: missing"),
        ({"regions": {}}, "regions: an object is not an array"),
        ({"regions": []}, "regions: 0 elements"),
        ({"regions": [1]}, "regions[0]: 1 is not an object"),
        ({"regions": [region()] * (MAX_REGIONS + 1)}, "regions: 65 elements"),
        ({"dummy_page": 1}, "dummy_page: 1 is not a multiple"),
        ({"dummy_page": 0}, "dummy_page: 0x0"),
        ({"dummy_page": ADDR + PAGE_SIZE}, "dummy_page: 0x7f0000001000 lies in regions[0]"),
        ({"pins": 0}, "pins: 0 is not true or false"),
        ({"qmp": 1}, "qmp: 1 is not a string"),
        ({"qmp": "relative"}, 'qmp: "relative" is not an absolute path'),
        ({"qmp": "/" + "x" * 107}, "qmp: "),
        ({"qmp": "/a\0b"}, "qmp: "),
        ({"qmp": "/\ud800"}, "qmp: the path is not UTF-8"),
    ],
)
def test_bad_message_names_the_field(more, message):
    assert message in refusal(register(**more)).message


def test_another_version_is_not_supported():
    caught = refusal(register(vmmswap=2))
    assert isinstance(caught, NotSupportedError)
    assert "version 2" in caught.message
    assert isinstance(refusal(b'{"vmmswap":0,"type":"remove-region"}'), NotSupportedError)


@pytest.mark.parametrize(
    ("fd_count", "problem"), [(0, "missing"), (1, "missing"), (3, "surplus"), (253, "surplus")]
)
def test_fds_must_be_as_many_as_the_message_says(fd_count, problem):
    assert f"fds: {fd_count} came: {problem}" in refusal(register(), fd_count).message


def test_overlaps():
    addresses = register(region(), region(base_host_virt_addr=ADDR + (1 << 29), offset=1 << 30))
    assert refusal(addresses).message.startswith("regions[1].base_host_virt_addr: 0x7f0020000000")
    offsets = register(region(offset=1 << 29), region(base_host_virt_addr=ADDR + (1 << 30)))
    assert "offset: " in refusal(offsets).message
    assert "overlaps regions[0]" in refusal(offsets).message
    same_offsets_of_two_files = register(region(), region(base_host_virt_addr=ADDR + (1 << 30), memfd=1))
    assert isinstance(messages.parse(same_offsets_of_two_files, 3), Register)


def test_regions_together_are_limited():
    half = MAX_TOTAL_BYTES // 2
    regions = [region(base_host_virt_addr=(idx + 1) << 45, size=half, offset=idx << 45) for idx in range(3)]
    assert "bytes together" in refusal(register(*regions)).message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"[]",
        b"null",
        b'"register"',
        b"{",
        b"{}{}",
        b"\xff\xfe{\0}\0",
        b"\xef\xbb\xbf{}",
        b'{"type":"\xff"}',
        b'{"vmmswap":NaN,"type":"register"}',
        b'{"vmmswap":-Infinity,"type":"register"}',
        b'{"vmmswap":1,"vmmswap":1,"type":"register"}',
        b'{"vmmswap":1e999,"type":"register"}',
        b'{"type":"a\nb"}',
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"9" * 100_000,
        b'{"type":' + b"9" * 100_000 + b"}",
    ],
)
def test_not_a_message(data):
    assert isinstance(refusal(data), ProtocolError)
    assert isinstance(refusal(data, parse=messages.parse_firecracker), ProtocolError)


def test_key_given_twice_is_named():
    assert '"size" is given twice' in refusal(register().replace(b'"offset"', b'"size"')).message


def test_refusals_are_one_short_line_of_ascii():
    caught = refusal(register(type="\n\ud800\u202e" * 10_000))
    assert caught.message.isascii()
    assert caught.message.isprintable()
    assert len(caught.message) < 500


def firecracker(*items):
    return json.dumps(items).encode()


def test_firecracker_in_all_its_versions():
    base = {"base_host_virt_addr": ADDR, "size": 1 << 20, "offset": 0}
    expected = FirecrackerRegister((Region(ADDR, 1 << 20, 0, 0),))
    for sizes in ({"page_size": 4096}, {"page_size_kib": 4096}, {"page_size": 4096, "page_size_kib": 4096}):
        assert messages.parse_firecracker(firecracker({**base, **sizes}), 1) == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "regions[0].page_size: missing"),
        ({"page_size_kib": 4}, "regions[0].page_size: 4 is not 4096"),
        ({"page_size": 4096, "page_size_kib": 4}, "regions[0].page_size_kib: 4 differs from page_size 4096"),
        ({"page_size": 2 << 20}, "huge pages are not supported"),
    ],
)
def test_firecracker_page_size(sizes, message):
    item = {"base_host_virt_addr": ADDR, "size": 1 << 20, "offset": 0, **sizes}
    assert message in refusal(firecracker(item), 1, messages.parse_firecracker).message


def test_firecracker_needs_one_fd():
    item = {"base_host_virt_addr": ADDR, "size": 1 << 20, "offset": 0, "page_size": 4096}
    assert "missing" in refusal(firecracker(item), 0, messages.parse_firecracker).message
    assert "surplus" in refusal(firecracker(item), 2, messages.parse_firecracker).message


# What a hostile or broken VMM may send: right keys with wrong values, wrong keys, bytes that are no JSON.
numbers = st.one_of(
    st.integers(),
    st.integers(0, 1 << 20).map(lambda pages: pages * PAGE_SIZE),
    st.sampled_from(
        [0, 1, -1, 4095, 4096, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, 1 << 64, 10**30]
    ),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
regions_in = st.fixed_dictionaries(
    {},
    optional={key: st.one_of(numbers, values) for key in (*region(), "page_size_kib")},
) | st.builds(
    lambda addr, size, offset, memfd: region(base_host_virt_addr=addr, size=size, offset=offset, memfd=memfd),
    numbers,
    numbers,
    numbers,
    st.integers(0, 4),
)
region_lists = st.lists(regions_in, max_size=6)
messages_in = st.fixed_dictionaries(
    {},
    optional={
        "vmmswap": st.just(1) | values,
        "type": st.sampled_from(["register", "add-process", "add-region", "remove-region", "attach"])
        | values,
        "regions": region_lists | values,
        "dummy_page": numbers | values,
        "pins": st.booleans() | values,
        "qmp": st.text() | values,
        "force": values,
    },
)


def check_parsed(parsed):
    """Whatever is accepted keeps its promises."""
    for item in getattr(parsed, "regions", ()):
        assert item.addr > 0
        assert item.size_bytes > 0
        assert item.addr % PAGE_SIZE == item.size_bytes % PAGE_SIZE == item.offset_bytes % PAGE_SIZE == 0
        assert item.end <= 1 << 64
        assert 0 <= item.offset_bytes < item.end_offset < 1 << 63
    spans = sorted((item.addr, item.end) for item in getattr(parsed, "regions", ()))
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


@settings(max_examples=1500, deadline=None)
@given(message=messages_in | values | region_lists, fd_count=st.integers(0, 6))
def test_malformed_messages_end_in_our_errors_only(message, fd_count):
    data = json.dumps(message).encode()
    for parse in (messages.parse, messages.parse_firecracker):
        try:
            check_parsed(parse(data, fd_count))
        except VmmswapError as error:
            assert error.message
            assert error.message.isascii()


@settings(max_examples=1500, deadline=None)
@given(
    data=st.binary(max_size=200)
    | st.builds(
        lambda base, at, junk: base[: at % len(base)] + junk + base[at % len(base) + len(junk) :],
        st.sampled_from([register(), register(region(), region(memfd=1), dummy_page=4096, qmp="/q")]),
        st.integers(0, 10_000),
        st.binary(min_size=1, max_size=6),
    )
)
def test_malformed_bytes_end_in_our_errors_only(data):
    for parse in (messages.parse, messages.parse_firecracker):
        try:
            check_parsed(parse(data, 2))
        except VmmswapError as error:
            assert error.message.isascii()


def private(**changes):
    base = {"base_host_virt_addr": ADDR, "size": 1 << 30, "page_size": PAGE_SIZE, "private": True}
    return {**base, **changes}


def test_private_memory_has_no_memfd():
    parsed = messages.parse(register(private()), 3)
    assert isinstance(parsed, Register)
    assert (parsed.regions, parsed.memfd_count) == ((private_region(ADDR, 1 << 30),), 0)
    assert parsed.is_private


@pytest.mark.parametrize(
    ("regions", "fd_count", "error", "text"),
    [
        ([private(memfd=0)], 3, ProtocolError, "regions[0].memfd: private memory is in no memfd"),
        ([private(offset=0)], 3, ProtocolError, "regions[0].offset: private memory is in no memfd"),
        ([private(private=1)], 3, ProtocolError, "regions[0].private: "),
        ([private()], 1, ProtocolError, "fds: 1 came: missing: the message needs 3"),
        ([private()], 4, ProtocolError, "fds: 4 came: surplus: the message needs 3"),
        ([private(), region(base_host_virt_addr=1 << 30)], 3, NotSupportedError, "regions[1].private: "),
        ([region(base_host_virt_addr=1 << 30), private()], 3, NotSupportedError, "regions[1].private: "),
        ([private(), private()], 3, InvalidRegionError, "regions[1].base_host_virt_addr: "),
    ],
)
def test_what_private_memory_is_refused_for(regions, fd_count, error, text):
    refused = refusal(register(*regions), fd_count)
    assert isinstance(refused, error)
    assert refused.message.startswith(text)


def test_what_a_vmm_sends_of_private_memory_is_what_is_read():
    regions = (private_region(ADDR, 1 << 30),)
    assert messages.parse(messages.encode("register", regions), 3).regions == regions
    assert messages.parse(messages.encode("add-region", regions), 0).regions == regions
