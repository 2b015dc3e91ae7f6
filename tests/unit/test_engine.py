# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap/engine.py, what the engine's own tests cannot see: the handle that Python has of it."""

import dataclasses

import pytest

from vmmswap._engine import ffi
from vmmswap.engine import Engine, EngineConfig, EngineStats
from vmmswap.errors import NoSuchVMError


@pytest.mark.parametrize("call", [Engine.stats, Engine.events, Engine.cancel, Engine.pin_check.fget])
def test_a_closed_engine_is_an_error_and_no_crash(tmp_path, call):
    engine = Engine(EngineConfig(swap_dir=tmp_path))
    call(engine)
    engine.close()
    with pytest.raises(NoSuchVMError):
        call(engine)
    engine.close()


def test_python_has_every_figure_of_the_engine_and_no_other():
    names = {field.name for field in dataclasses.fields(EngineStats)}
    struct = {name for name, _ in ffi.typeof("struct engine_stats").fields}
    assert names == (struct - {"last_mode"}) | {"mode"}
