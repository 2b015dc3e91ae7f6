# SPDX-License-Identifier: GPL-2.0-or-later
"""A successor's turn to start: it waits for others, and for none of them too long."""

from __future__ import annotations

import logging
import math
import os
import threading
import time

import pytest

from vmmswap.monitor import start_turn
from vmmswap.monitor.start_turn import StartTurn


@pytest.fixture
def event_fd():
    """Of an engine that has nothing to report."""
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def others(monkeypatch, tmp_path, event_fd):
    """Two places, both taken."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(start_turn, "most", lambda: 2)
    turns = [StartTurn(), StartTurn()]
    for turn in turns:
        turn.wait(event_fd)
    yield turns
    for turn in turns:
        turn.release()


def test_it_waits_until_one_has_started(others, event_fd, caplog):
    caplog.set_level(logging.DEBUG)
    turn = StartTurn()
    waiting = threading.Thread(target=turn.wait, args=(event_fd,))
    waiting.start()
    while "waiting for other monitors" not in caplog.text:
        time.sleep(0.001)
    others[1].release()
    waiting.join()
    assert "no longer" not in caplog.text
    turn.release()


def test_one_that_hangs_is_not_waited_for(others, event_fd):
    turn = StartTurn()
    turn.wait(event_fd, longest_s=0)
    turn.release()  # what it never had
    others[0].release()
    turn.wait(event_fd)
    turn.release()


@pytest.mark.usefixtures("others")
def test_what_the_engine_reports_does_not_wait(event_fd):
    """Without end, if it did."""
    os.eventfd_write(event_fd, 1)
    StartTurn().wait(event_fd, longest_s=math.inf)


@pytest.mark.usefixtures("others")
def test_only_with_the_monitors_that_share_a_directory(monkeypatch, event_fd):
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    StartTurn().wait(event_fd, longest_s=math.inf)


def test_a_directory_that_cannot_be_used_keeps_nobody_from_starting(monkeypatch, tmp_path, caplog, event_fd):
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "gone"))
    StartTurn().wait(event_fd, longest_s=math.inf)
    assert os.fspath(tmp_path / "gone") in caplog.text
