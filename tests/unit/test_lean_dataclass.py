# SPDX-License-Identifier: GPL-2.0-or-later
"""The lean dataclasses do what those of the standard library do: both are made from the same definitions, and
asked the same.
"""

import copy
import dataclasses
import inspect
import pickle
import sys
from dataclasses import asdict, astuple, field, replace

import pytest

import vmmswap.monitor.main
from vmmswap import lean_dataclass


def define(dataclass):
    """Classes as they are used here, with each parameter of field() that is used, and some that are not."""

    @dataclass(frozen=True, slots=True)
    class Point:
        """A place."""

        x: int
        y: int = 7

    @dataclass(frozen=True, slots=True)
    class Named(Point):
        name: str = field(default="none", compare=False)
        secret: str = field(default="hush", repr=False)

    @dataclass(slots=True)
    class Open:
        values: list[int] = field(default_factory=list)
        made: dict[str, int] = field(init=False, default_factory=dict)
        later: int = field(init=False)

        def __post_init__(self):
            self.later = len(self.values)

    @dataclass(slots=True, kw_only=True)
    class Keywords:
        first: int
        second: str = "two"

    @dataclass(slots=True)
    class Mixed:
        one: int
        two: int = field(default=2, kw_only=True)
        three: int = 3
        four: int = field(init=False, default=4)

    @dataclass(frozen=True, slots=True)
    class Empty:
        pass

    return {cls.__name__: cls for cls in (Point, Named, Open, Keywords, Mixed, Empty)}


STANDARD, LEAN = define(dataclasses.dataclass), define(lean_dataclass._dataclass)
globals().update(LEAN)  # for pickle
for made in LEAN.values():
    made.__qualname__ = made.__name__

CALLS = {
    "Point": [((1,), {}), ((1, 2), {}), ((), {"x": 3, "y": 4}), ((1,), {"y": 2}), (([],), {})],
    "Named": [((1,), {}), ((1, 2, "a", "b"), {}), ((1,), {"name": "b"}), ((1,), {"secret": "s"})],
    "Open": [((), {}), (([1, 2],), {}), ((), {"values": [3]})],
    "Keywords": [((), {"first": 1}), ((), {"first": 1, "second": "b"})],
    "Mixed": [((1,), {}), ((1, 5), {"two": 6})],
    "Empty": [((), {})],
}
WRONG = [((), {}), ((1, 2, 3, 4, 5), {}), ((), {"unknown": 1})]
EACH = pytest.mark.parametrize("name", LEAN)


def pairs(name):
    for arguments, values in CALLS[name]:
        yield STANDARD[name](*arguments, **values), LEAN[name](*arguments, **values)


@EACH
def test_objects_are_the_same(name):
    for standard, lean in pairs(name):
        assert repr(lean) == repr(standard).replace("define.<locals>.", "")
        assert asdict(lean) == asdict(standard)
        assert astuple(lean) == astuple(standard)
        assert not hasattr(lean, "__dict__")


@EACH
def test_the_same_are_equal(name):
    both = list(pairs(name))
    for standard, lean in both:
        for other_standard, other_lean in both:
            assert (lean == other_lean) == (standard == other_standard)
        assert lean != standard
        assert lean != astuple(lean)


@EACH
def test_the_same_can_be_hashed(name):
    for standard, lean in pairs(name):
        assert hash_of(lean) == hash_of(standard)


def hash_of(it):
    try:
        return hash(it)
    except TypeError:
        return None


@EACH
def test_the_same_can_be_set(name):
    for standard, lean in pairs(name):
        for item in dataclasses.fields(lean):
            assert refusal(setattr, lean, item.name, 5) == refusal(setattr, standard, item.name, 5)
            assert getattr(lean, item.name) == getattr(standard, item.name)
            assert refusal(delattr, lean, item.name) == refusal(delattr, standard, item.name)


def refusal(action, *arguments):
    try:
        action(*arguments)
    except AttributeError as error:
        return type(error), str(error)
    return None


@EACH
def test_the_same_is_refused(name):
    for arguments, values in WRONG:
        assert error_of(LEAN[name], arguments, values) == error_of(STANDARD[name], arguments, values)


def error_of(cls, arguments, values):
    try:
        cls(*arguments, **values)
    except TypeError as error:
        return str(error).replace("define.<locals>.", "")
    return ""


@EACH
def test_parameters_are_the_same(name):
    assert list(pairs(name))  # what a class takes is known when it has made something
    standard, lean = (inspect.signature(cls) for cls in (STANDARD[name], LEAN[name]))
    assert [(one.name, one.kind) for one in lean.parameters.values()] == [
        (one.name, one.kind) for one in standard.parameters.values()
    ]


@EACH
def test_copies_are_equal(name):
    for _, lean in pairs(name):
        values = {item.name: getattr(lean, item.name) for item in dataclasses.fields(lean) if item.init}
        for other in (copy.copy(lean), pickled(lean), replace(lean, **values)):
            assert other == lean
            assert other is not lean


def pickled(it):
    return pickle.loads(pickle.dumps(it))  # noqa: S301  our own


def test_defaults_are_not_shared():
    one, other = LEAN["Open"](), LEAN["Open"]()
    one.values.append(1)
    assert other.values == []


def test_an_object_is_made_by_what_was_compiled_for_its_class():
    """Also if that of the base is there already, or comes later."""
    made = define(lean_dataclass._dataclass)
    assert astuple(made["Named"](1)) == (1, 7, "none", "hush")
    assert astuple(made["Point"](2)) == (2, 7)
    assert astuple(made["Named"](1)) == (1, 7, "none", "hush")
    made = define(lean_dataclass._dataclass)
    assert astuple(made["Point"](2)) == (2, 7)
    assert astuple(made["Named"](1, 2, "a", "b")) == (1, 2, "a", "b")


def test_what_has_no_slots_is_refused():
    with pytest.raises(TypeError, match="without slots"):
        lean_dataclass._dataclass(slots=False)


def test_a_monitor_has_no_other():
    """Whatever of ours has fields."""
    vmmswap.monitor.main  # noqa: B018  imports all that a monitor begins with
    classes = {
        it
        for name, module in sys.modules.items()
        if name.startswith("vmmswap.")
        for it in vars(module).values()
        if isinstance(it, type) and dataclasses.is_dataclass(it) and it.__module__.startswith("vmmswap.")
    }
    assert len(classes) > 50
    assert {cls for cls in classes if cls.__eq__ is not lean_dataclass._eq} == set()
