# SPDX-License-Identifier: GPL-2.0-or-later
"""The page-fault log as a file: a disk that stands still holds up nobody but the thread that writes."""

import logging
import os
from pathlib import Path

import pytest

from vmmswap.errors import StorageFailedError
from vmmswap.monitor.trace_file import LIMIT_FAULTS, FileSink
from vmmswap.trace_format import BATCH_FAULTS, Fault, TraceHeader

DEADLINE_S = 60.0
BATCH = [Fault(number, 0, 0) for number in range(BATCH_FAULTS)]


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """In the file's place: who opens or writes it waits for a reader."""
    path = tmp_path / "page_fault.log"
    os.mkfifo(path)
    return path


def test_what_a_disk_does_not_take_is_dropped_and_counted(
    pipe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    sink = FileSink(pipe, TraceHeader(0, ()), "0")
    with pipe.open() as reader:
        sink.opened.result(DEADLINE_S)
        batches = 2 * LIMIT_FAULTS // BATCH_FAULTS
        for _ in range(batches):
            sink.write(BATCH)
        sink.close()
        written = len(reader.readlines()) - 1
    sink.done.result(DEADLINE_S)
    assert LIMIT_FAULTS <= written < batches * BATCH_FAULTS
    dropped = batches * BATCH_FAULTS - written
    assert [record.getMessage() for record in caplog.records] == [
        f"{pipe} is written too slowly: {dropped} page faults are not in it"
    ]


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "absent" / "page_fault.log", TraceHeader(0, ()), "0")
    with pytest.raises(StorageFailedError, match="cannot write the page-fault log"):
        sink.opened.result(DEADLINE_S)
    sink.done.result(DEADLINE_S)


def test_who_opens_is_not_waited_for(pipe: Path) -> None:
    sink = FileSink(pipe, TraceHeader(0, ()), "0")
    sink.write(BATCH)
    sink.close()
    assert not sink.opened.done()
    with pipe.open() as reader:
        assert len(reader.readlines()) == 1 + BATCH_FAULTS
    sink.done.result(DEADLINE_S)
