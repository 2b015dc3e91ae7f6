# SPDX-License-Identifier: GPL-2.0-or-later
"""Untrusted JSON comes in here and leaves as typed values, or as an error that names the field."""

from __future__ import annotations

import json
from collections.abc import Iterator

from vmmswap.errors import ProtocolError

_MAX_DIGITS = 20  # 2^64 has 20: what is longer can be no field of ours, and costs time to convert
_MAX_SHOWN = 60


class _HugeNumber:
    """A number too long to be converted. Kept, so that the getter can name its field."""

    def __init__(self, text: str) -> None:
        self.text = text


def show(value: object) -> str:
    """A peer's value for an error message: short, one line, ASCII."""
    if isinstance(value, _HugeNumber):
        return f"{value.text[:_MAX_DIGITS]}... ({len(value.text)} digits)"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, str):
        cut = "..." if len(value) > _MAX_SHOWN else ""
        return json.dumps(value[:_MAX_SHOWN]) + cut
    return json.dumps(value)


def _integer(text: str) -> int | _HugeNumber:
    return int(text) if len(text) <= _MAX_DIGITS else _HugeNumber(text)


def _constant(text: str) -> object:
    raise ProtocolError(f"{text} is not JSON: send a number")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ProtocolError(f"the key {show(twice)} is given twice in one object")
    return found


def decode(data: bytes) -> object:
    """The JSON value in `data`, or ProtocolError. UTF-8 only; no NaN, no key twice in one object."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError(f"byte {error.start} of the message is not UTF-8") from None
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant)
    except RecursionError:
        raise ProtocolError("the message is nested too deeply") from None
    except ValueError as error:
        detail = str(error) if isinstance(error, json.JSONDecodeError) else "a number is too long"
        raise ProtocolError(f"the message is not JSON: {detail}") from None


class Fields:
    """One JSON object of a peer. Getters raise ProtocolError with the field's full name.

    Fields that nobody asks for are ignored: a newer VMM may say more than an older monitor knows.
    """

    def __init__(self, value: object, where: str = "") -> None:
        if not isinstance(value, dict):
            raise ProtocolError(f"{where or 'message'}: {show(value)} is not an object")
        self._values: dict[str, object] = value
        self._where = where

    def name_of(self, key: str) -> str:
        """The field's full name, as in `regions[0].size`."""
        return f"{self._where}.{key}" if self._where else key

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def _get(self, key: str) -> object:
        if key not in self._values:
            raise ProtocolError(f"{self.name_of(key)}: missing")
        return self._values[key]

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer that fits 64 bits, signed or not. A bool or 1.0 is none. default None: it is needed."""
        value = self._get(key) if default is None else self._values.get(key, default)
        if isinstance(value, _HugeNumber) or (type(value) is int and not -(1 << 63) <= value < 1 << 64):
            raise ProtocolError(f"{self.name_of(key)}: {show(value)} does not fit 64 bits")
        if type(value) is not int:
            raise ProtocolError(f"{self.name_of(key)}: {show(value)} is not an integer")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise ProtocolError(f"{self.name_of(key)}: {show(value)} is not true or false")
        return value

    def string(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str):
            raise ProtocolError(f"{self.name_of(key)}: {show(value)} is not a string")
        return value

    def strings(self, key: str, limit: int) -> tuple[str, ...]:
        """An array of at most `limit` strings; none if the field is missing."""
        value = self._values.get(key, [])
        if not isinstance(value, list) or len(value) > limit:
            raise ProtocolError(f"{self.name_of(key)}: {show(value)} is not an array of at most {limit}")
        for item in value:
            if not isinstance(item, str):
                raise ProtocolError(f"{self.name_of(key)}: {show(item)} is not a string")
        return tuple(value)

    def objects(self, key: str, limit: int) -> Iterator[Fields]:
        """The objects of an array that has 1 to `limit` elements."""
        return objects(self._get(key), self.name_of(key), limit)


def objects(value: object, where: str, limit: int) -> Iterator[Fields]:
    """As Fields.objects, for a bare array."""
    if not isinstance(value, list):
        raise ProtocolError(f"{where}: {show(value)} is not an array")
    if not 1 <= len(value) <= limit:
        raise ProtocolError(f"{where}: {len(value)} elements: must be 1 to {limit}")
    return (Fields(item, f"{where}[{idx}]") for idx, item in enumerate(value))
