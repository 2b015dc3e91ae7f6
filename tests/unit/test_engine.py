# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap/engine/, what the engine's own tests cannot see: the handle that Python has of it."""

import dataclasses
import mmap
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from vmmswap import engine
from vmmswap._engine import ffi, lib
from vmmswap.engine import Engine, EngineConfig, EngineStats, MapperWatch, mappers_of
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


def test_mappings_of_some_processes_only() -> None:
    memfd = os.memfd_create("guest")
    os.ftruncate(memfd, mmap.PAGESIZE)
    program = f"import mmap; memory = mmap.mmap({memfd}, 4096); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with ExitStack() as stack:
        both = [
            stack.enter_context(subprocess.Popen([sys.executable, "-c", program], pass_fds=[memfd], **pipes))
            for _ in range(2)
        ]
        assert [process.stdout.readline() for process in both] == [b"\n"] * 2
        one, other = (process.pid for process in both)
        watch = MapperWatch()
        for found in (mappers_of([memfd]), watch.look([memfd]), watch.look([memfd])):
            assert {mapping.pid for mapping in found[0]} == {one, other}
        assert {mapping.pid for mapping in mappers_of([memfd], [other])[0]} == {other}
        assert mappers_of([memfd], []) == ([], [])
        for process in both:
            process.communicate(b"\n")
    os.close(memfd)


def test_all_that_python_calls_is_declared() -> None:
    """cffi finds out only when it is called, which may be seldom."""
    called = {
        name
        for path in Path(engine.__file__).parent.glob("*.py")
        for name in re.findall(r"\blib\.(\w+)", path.read_text())
    }
    assert len(called) > 50
    assert {name for name in called if not hasattr(lib, name)} == set()
