# SPDX-License-Identifier: GPL-2.0-or-later
"""Dataclasses that cost little to define: `dataclass` for `dataclasses.dataclass`, with the parameters that
are used here.

The standard library's generates the source of six methods for each frozen class and compiles it. That took
half of the time in which a monitor imports its modules, and more than a MiB, and there is a monitor for each
VM. Here all classes share one function for each of these methods, and `__init__` is compiled when the first
object is made, which many a class never sees. All else is the standard library's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import asdict, astuple, field, fields, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

__all__ = ["asdict", "astuple", "dataclass", "field", "fields", "replace"]

_Class = TypeVar("_Class", bound=type)


def _dataclass(*, frozen: bool = False, slots: bool, kw_only: bool = False) -> Callable[[_Class], _Class]:
    """slots: must be true, as it is wherever this is used."""
    if not slots:
        raise TypeError("dataclasses without slots are not made here")

    def make(cls: _Class) -> _Class:
        cls.__doc__ = cls.__doc__ or cls.__name__  # else dataclasses makes one, from the signature
        made: Any = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True, kw_only=kw_only)(cls)
        made.__init__ = _init_at_first
        made.__repr__ = _repr
        made.__eq__ = _eq
        made.__hash__ = _hash if frozen else None
        if frozen:
            made.__setattr__ = _refuse_to_set
            made.__delattr__ = _refuse_to_delete
            made.__getstate__ = _state
            made.__setstate__ = _set_state
        result: _Class = made
        return result

    return make


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass  # noqa: PLC0414  mypy knows only this one
else:
    dataclass = _dataclass


@functools.cache
def _names(cls: Any, use: str) -> tuple[str, ...]:  # noqa: ANN401  a class
    """Of the fields that are meant for this use: "init", "repr" or "compare"."""
    return tuple(item.name for item in fields(cls) if getattr(item, use))


def _values(self: Any, use: str) -> tuple[Any, ...]:  # noqa: ANN401  of any class
    return tuple([getattr(self, name) for name in _names(self.__class__, use)])


def _repr(self: Any) -> str:  # noqa: ANN401  as above
    values = zip(_names(self.__class__, "repr"), _values(self, "repr"), strict=True)
    return f"{self.__class__.__qualname__}({', '.join(f'{name}={value!r}' for name, value in values)})"


def _eq(self: object, other: object) -> Any:  # noqa: ANN401  or NotImplemented
    if other.__class__ is not self.__class__:
        return NotImplemented
    return _values(self, "compare") == _values(other, "compare")


def _hash(self: object) -> int:
    return hash(_values(self, "compare"))


def _refuse_to_set(_self: object, name: str, _value: object) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(_self: object, name: str) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _state(self: Any) -> list[Any]:  # noqa: ANN401  for copy and pickle, as below
    return [getattr(self, item.name) for item in fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:  # noqa: ANN401
    for item, value in zip(fields(self), state, strict=True):
        object.__setattr__(self, item.name, value)


def _init_at_first(self: object, /, *args: object, **values: object) -> None:
    cls: Any = next(one for one in type(self).__mro__ if one.__dict__.get("__init__") is _init_at_first)
    cls.__init__ = _compiled_init(cls)
    cls.__init__(self, *args, **values)


def _compiled_init(cls: type[Any]) -> Callable[..., None]:
    """The slots are set past __setattr__, which may refuse."""
    positional: list[str] = []
    keywords: list[str] = []
    lines: list[str] = []
    names: dict[str, Any] = {"MISSING": dataclasses.MISSING}
    for item in fields(cls):
        names[f"set_{item.name}"] = getattr(cls, item.name).__set__
        has_factory = item.default_factory is not dataclasses.MISSING
        has_default = item.default is not dataclasses.MISSING
        value = item.name
        if has_factory:
            names[f"default_{item.name}"] = item.default_factory
            made = f"default_{item.name}()"
            value = f"{made} if {item.name} is MISSING else {item.name}" if item.init else made
        elif has_default:
            names[f"default_{item.name}"] = item.default
            value = item.name if item.init else f"default_{item.name}"
        if item.init:
            default = "=MISSING" if has_factory else f"=default_{item.name}" if has_default else ""
            (keywords if item.kw_only else positional).append(f"{item.name}{default}")
        if item.init or has_factory or has_default:
            lines.append(f"set_{item.name}(self, {value})")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    arguments = ", ".join(["self", *positional, *(["*", *keywords] if keywords else [])])
    body = "\n ".join(lines or ["pass"])
    exec(f"def __init__({arguments}):\n {body}", names)  # noqa: S102  of names that Python has accepted as such
    made_init: Callable[..., None] = names["__init__"]
    made_init.__qualname__ = f"{cls.__qualname__}.__init__"
    return made_init
