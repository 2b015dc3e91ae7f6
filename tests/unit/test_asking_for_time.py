# SPDX-License-Identifier: GPL-2.0-or-later
"""Until its event loop runs, a successor asks for time: a stop that takes too long would end it with memory
out.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from vmmswap import log, monitor
from vmmswap.config import Config
from vmmswap.monitor import main, own_memory, recovery, service
from vmmswap.monitor.command import Command

LATE = "vmmswap.monitor.start"


class Late(MetaPathFinder, Loader):
    """The module that is loaded last, and what happens meanwhile."""

    def __init__(self) -> None:
        self.is_asking = False
        self.was_asking: list[bool] = []

    def find_spec(
        self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name == LATE else None

    def exec_module(self, module: ModuleType) -> None:
        self.was_asking.append(self.is_asking)
        vars(module)["run"] = lambda *_: 0

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        self.is_asking = True
        yield
        self.is_asking = False


def test_it_asks_while_it_loads_what_may_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    late = Late()
    found = SimpleNamespace(vm=SimpleNamespace(engine=SimpleNamespace(event_fd=0)))
    settings = SimpleNamespace(current=Config())
    monkeypatch.setitem(sys.modules, LATE, ModuleType(LATE))  # so that it is as before in the end
    monkeypatch.delitem(sys.modules, LATE)
    monkeypatch.setattr(monitor, "start", None, raising=False)
    monkeypatch.delattr(monitor, "start")
    monkeypatch.setattr(sys, "meta_path", [late, *sys.meta_path])
    monkeypatch.setattr(service, "asking_for_time", late.asking)
    monkeypatch.setattr(service, "forbid_core_dumps", lambda: None)
    monkeypatch.setattr(logging, "captureWarnings", lambda _: None)
    monkeypatch.setattr(log, "set_up", lambda *_: False)
    monkeypatch.setattr(own_memory, "use_one_arena", lambda: None)
    monkeypatch.setattr(own_memory, "lock", lambda: None)
    monkeypatch.setattr(recovery, "is_needed", lambda _: True)
    monkeypatch.setattr(recovery, "recover", lambda *_: found)
    monkeypatch.setattr(main, "_start_keeper", lambda *_, **__: None)
    monkeypatch.setattr(main, "_settings", lambda *_: settings)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)

    assert main._run(Command("web", swap_dir=tmp_path, log_dir=tmp_path), {}) == 0
    assert late.was_asking == [True]
    assert not late.is_asking
