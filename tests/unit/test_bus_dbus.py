# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes <-> messages: what goes in comes out, and nothing that a peer sends is worse than MalformedError."""

import contextlib

import pytest
from dbus_next.signature import SignatureTree
from hypothesis import given
from hypothesis import strategies as st

from vmmswap.bus import dbus
from vmmswap.bus.dbus import Flag, Kind, MalformedError, Message, Variant, clean, plain

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def split(encoded: bytes) -> tuple[dbus.Frame, bytes, bytes]:
    frame = dbus.decode_frame(encoded[: dbus.FIXED_HEADER_BYTES])
    end = dbus.FIXED_HEADER_BYTES + frame.fields_bytes
    assert len(encoded) == end + frame.body_bytes
    return frame, encoded[dbus.FIXED_HEADER_BYTES : end], encoded[end:]


def decode(encoded: bytes) -> Message:
    frame, fields, body = split(encoded)
    message = dbus.decode_header(frame, fields)
    message.body = dbus.decode_body(frame, message.signature, body)
    return message


CALL = Message(
    kind=Kind.CALL,
    serial=7,
    flags=Flag.ALLOW_INTERACTIVE_AUTHORIZATION,
    path="/a/b",
    interface="org.a",
    member="M",
    destination=":1.2",
    signature="sua{sv}",
    body=["x", 5, {"k": Variant("as", ["y"])}],
)


def test_a_call_comes_out_as_it_went_in() -> None:
    assert decode(dbus.encode(CALL)) == CALL


@given(text=WORDS, number=st.integers(0, 2**64 - 1), flag=st.booleans())
def test_a_body_comes_out_as_it_went_in(text: str, number: int, flag: bool) -> None:
    body = [text, number, flag, [[text, number]], {text: Variant("(tb)", [number, flag])}]
    sent = Message(kind=Kind.RETURN, serial=1, reply_serial=9, signature="stba(st)a{sv}", body=body)
    assert decode(dbus.encode(sent)) == sent


@given(st.binary(min_size=16, max_size=16))
def test_any_sixteen_bytes_are_a_frame_or_an_aborted_connection(fixed: bytes) -> None:
    with contextlib.suppress(ConnectionAbortedError):
        frame = dbus.decode_frame(fixed)
        assert frame.fields_bytes % 8 == 0


@given(data=st.data())
def test_flipped_bytes_are_malformed_at_worst(data: st.DataObject) -> None:
    encoded = bytearray(dbus.encode(CALL))
    frame, _fields, _body = split(bytes(encoded))
    for _ in range(data.draw(st.integers(1, 8))):
        encoded[data.draw(st.integers(16, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    end = 16 + frame.fields_bytes
    with contextlib.suppress(MalformedError):
        message = dbus.decode_header(frame, bytes(encoded[16:end]))
        dbus.decode_body(frame, message.signature, bytes(encoded[end:]))


@pytest.mark.parametrize("kind", [0, 5, 255])
def test_a_kind_that_is_none(kind: int) -> None:
    encoded = bytearray(dbus.encode(CALL))
    encoded[1] = kind
    frame, fields, _body = split(bytes(encoded))
    with pytest.raises(MalformedError):
        dbus.decode_header(frame, fields)


def test_signatures_of_peers_do_not_pile_up() -> None:
    for count in range(1, 600):
        signature = "(" + "u" * (count % 200 + 1) + "s" * (count // 200 + 1) + ")"
        frame, _fields, body = split(
            dbus.encode(
                Message(
                    kind=Kind.CALL,
                    serial=1,
                    path="/",
                    member="M",
                    signature="v",
                    body=[Variant(signature, [0] * (count % 200 + 1) + [""] * (count // 200 + 1))],
                )
            )
        )
        dbus.decode_body(frame, "v", body)
        assert len(SignatureTree._cache) <= 257


def test_plain_takes_the_variants_out() -> None:
    value = {"a": Variant("v", Variant("as", ["x"])), "b": Variant("a{sv}", {"c": Variant("b", True)})}
    assert plain(value) == {"a": ["x"], "b": {"c": True}}


@pytest.mark.parametrize("text", ["a\0b", "\udcff", "\ud800x", "\N{SNOWMAN}"])
def test_clean_text_can_be_sent(text: str) -> None:
    sent = Message(
        kind=Kind.ERROR, serial=1, reply_serial=1, error_name="a.b", signature="s", body=[clean(text)]
    )
    assert decode(dbus.encode(sent)).body == [clean(text)]
    assert "\0" not in clean(text)
