# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap/failpoint.py: the steps of Python code that tests fail."""

import errno
import threading

import pytest

from vmmswap import failpoint
from vmmswap.failpoint import VARIABLE, reach


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(failpoint, "_reached", {})
    return monkeypatch


def outcome(step):
    try:
        reach(step)
    except OSError as error:
        return error.errno
    return 0


@pytest.mark.parametrize(
    ("text", "outcomes"),
    [
        ("", [0, 0, 0]),
        ("step=EIO", [errno.EIO] * 3),
        ("step=once:EIO", [errno.EIO, 0, 0]),
        ("step=ENOSPC@1", [0, errno.ENOSPC, errno.ENOSPC]),
        ("step=once:EIO@2", [0, 0, errno.EIO]),
        ("other=EIO;step=once:EIO", [errno.EIO, 0, 0]),
        ("step.more=EIO", [0, 0, 0]),
    ],
)
def test_a_step_fails_as_the_text_says(fresh, text, outcomes):
    fresh.setenv(VARIABLE, text)
    assert [outcome("step") for _ in outcomes] == outcomes


def test_a_step_waits_for_a_file(fresh, tmp_path):
    fresh.setenv(VARIABLE, f"step=until:{tmp_path / 'go'}")
    waiting = threading.Thread(target=reach, args=["step"])
    waiting.start()
    assert waiting.is_alive()
    (tmp_path / "go").touch()
    waiting.join()
