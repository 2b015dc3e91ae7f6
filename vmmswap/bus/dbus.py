# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes <-> D-Bus messages, by dbus-next's marshalling (marshalling.py).

Why only its marshalling, and neither its MessageBus nor its ServiceInterface:

* We decide what is unmarshalled. dbus-next parses every message whole, in Python, on the event loop: 32 MiB
  (what a system bus lets anyone send) stop a monitor for minutes. Each signature seen stays in a cache for
  ever. A message it cannot parse (an unknown type or header field) ends the connection. Here the header is
  read first, and a body only if somebody asked for just that signature.
* A full socket buffer ends its connection (BlockingIOError while writing); an end of file during the SASL
  exchange spins the event loop for ever. asyncio's streams do both well.
* A handler's traceback goes to the caller, one that is cancelled never answers, none learns who called,
  EmitsChangedSignal never reaches the XML, and ObjectManager's signals come from the wrong path.
"""

from __future__ import annotations

import enum
import io
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from vmmswap.bus import marshalling
from vmmswap.bus.marshalling import SignatureTree, Unmarshaller, Variant

__all__ = ["Variant"]

FIXED_HEADER_BYTES = 16  # endianness, type, flags, version, body length, serial, length of the field array
_FIELD_ARRAY_OFFSET = 12
_SIGNATURE_CACHE_LIMIT = 256

Value: TypeAlias = Any  # what a D-Bus value is in Python: bool, int, float, str, bytes, list, dict, Variant


class Kind(enum.IntEnum):
    """A message's type, by its number on the wire."""

    CALL = 1
    RETURN = 2
    ERROR = 3
    SIGNAL = 4


class Flag(enum.IntFlag):
    """A message's flags, by their numbers on the wire."""

    NONE = 0
    NO_REPLY_EXPECTED = 1
    NO_AUTO_START = 2
    ALLOW_INTERACTIVE_AUTHORIZATION = 4


class _Field(enum.IntEnum):
    PATH = 1
    INTERFACE = 2
    MEMBER = 3
    ERROR_NAME = 4
    REPLY_SERIAL = 5
    DESTINATION = 6
    SENDER = 7
    SIGNATURE = 8


class MalformedError(Exception):
    """Bytes that are no message that we understand."""


@dataclass(slots=True, kw_only=True)
class Message:
    """One D-Bus message. Absent header fields are "" or 0."""

    kind: Kind
    serial: int = 0
    flags: Flag = Flag.NONE
    path: str = ""
    interface: str = ""
    member: str = ""
    error_name: str = ""
    reply_serial: int = 0
    destination: str = ""
    sender: str = ""
    signature: str = ""
    body: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Frame:
    """What the fixed header says: how many bytes follow it, first the fields, then the body."""

    fixed: bytes
    fields_bytes: int
    body_bytes: int


def encode(message: Message) -> bytes:
    """The message as bytes. ValueError or TypeError if the body does not fit the signature, or a name."""
    encoded = marshalling.Message(
        message_type=marshalling.MessageType(message.kind),
        serial=message.serial,
        flags=marshalling.MessageFlag(message.flags),
        path=message.path or None,
        interface=message.interface or None,
        member=message.member or None,
        error_name=message.error_name or None,
        reply_serial=message.reply_serial or None,
        destination=message.destination or None,
        signature=message.signature,
        body=message.body,
    )
    return bytes(encoded._marshall())


def decode_frame(fixed: bytes) -> Frame:
    """Read the first FIXED_HEADER_BYTES of a message; ConnectionAbortedError if this is no D-Bus stream."""
    if fixed[0:1] not in (b"l", b"B") or fixed[3] != 1:
        raise ConnectionAbortedError(f"a message starts with {fixed[:4]!r}, which is not D-Bus version 1")
    order: Any = "little" if fixed[0:1] == b"l" else "big"
    array_bytes = int.from_bytes(fixed[12:16], order)
    return Frame(fixed, array_bytes + (-array_bytes & 7), int.from_bytes(fixed[4:8], order))


def decode_header(frame: Frame, fields: bytes) -> Message:
    """The message without its body; MalformedError if its kind or a field's type is unknown."""
    reader = Unmarshaller(io.BytesIO(frame.fixed + fields))
    reader.endian = frame.fixed[0]
    try:
        kind = Kind(frame.fixed[1])
        reader.read(8)
        serial = reader.read_uint32()
        found = {
            item[0]: item[1].value for item in reader.read_argument(SignatureTree._get("a(yv)").types[0])
        }
    except Exception as error:
        raise MalformedError(f"a message's header cannot be read: {error!r}") from error
    return Message(
        kind=kind,
        serial=serial,
        flags=Flag(frame.fixed[2] & 7),
        path=found.get(_Field.PATH, ""),
        interface=found.get(_Field.INTERFACE, ""),
        member=found.get(_Field.MEMBER, ""),
        error_name=found.get(_Field.ERROR_NAME, ""),
        reply_serial=found.get(_Field.REPLY_SERIAL, 0),
        destination=found.get(_Field.DESTINATION, ""),
        sender=found.get(_Field.SENDER, ""),
        signature=found.get(_Field.SIGNATURE, ""),
    )


def decode_body(frame: Frame, signature: str, body: bytes) -> list[Any]:
    """A body's values; MalformedError if they cannot be read. Variants come as Variant (signature, value)."""
    reader = Unmarshaller(io.BytesIO(body))
    reader.endian = frame.fixed[0]
    try:
        return [reader.read_argument(item) for item in SignatureTree._get(signature).types]
    except Exception as error:
        raise MalformedError(f"a message's body cannot be read as {signature!r}: {error!r}") from error
    finally:
        if len(SignatureTree._cache) > _SIGNATURE_CACHE_LIMIT:
            SignatureTree._cache.clear()  # variants bring their own signatures, as many as a peer likes


def clean(text: str) -> str:
    """The text as a D-Bus string can hold it: a NUL or a lone surrogate would make the bus cut us off."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def plain(value: Value) -> Value:
    """The value with every variant in it replaced by what it holds."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value
