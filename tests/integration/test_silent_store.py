# SPDX-License-Identifier: GPL-2.0-or-later
"""The swap directory's file system stops answering (FUSE, a network): Status does not ask it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.blocking_files import FuseFile
from vmmswap.engine import Engine, EngineConfig

REASON = "needs root, to mount" if os.geteuid() else FuseFile.missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

DEADLINE_S = 120.0


@pytest.fixture
def file(tmp_path: Path) -> Iterator[FuseFile]:
    directory = tmp_path / "fuse"
    directory.mkdir()
    with FuseFile(directory) as made:
        yield made


def test_status_does_not_wait_for_it(file: FuseFile, tmp_path: Path) -> None:
    config = EngineConfig(tmp_path, fault_threads=1, workers=1)
    first = Engine(config)
    engine = Engine(config, page_map_fd=first.page_map_fd, store_fd=file.fd)
    file.silence()
    found = []
    asking = threading.Thread(target=lambda: found.append(engine.stats()), daemon=True)
    asking.start()
    asking.join(DEADLINE_S)
    file.end()  # who waits gets an error
    asking.join()
    assert found
    assert file.requests_so_far() == []
    engine.close()
    first.close()
