# SPDX-License-Identifier: GPL-2.0-or-later
"""Time spans mean what systemd-analyze says that they mean."""

import shutil
import subprocess

import pytest

from vmmswap.timespan import span_us

SPANS = [
    "10",
    "10s",
    "1min 30s",
    "250ms",
    "2h",
    "1d 2h 3min 4s 5ms 6us",
    "0.5",
    "1.5h",
    "3 minutes",
    "1w",
    "7usec",
]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("text", SPANS)
def test_as_systemd_has_them(text: str) -> None:
    shown = subprocess.run(
        ["systemd-analyze", "timespan", text], check=True, capture_output=True, text=True
    ).stdout
    [microseconds] = [line.split()[1] for line in shown.splitlines() if "s:" in line and "Human" not in line]
    assert span_us(text) == int(microseconds)


@pytest.mark.parametrize(
    "text",
    ["", " ", "s", "-1", "nan", "inf", "10 parsecs", "1e3", "10s x", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 99],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time span"):
        span_us(text)
