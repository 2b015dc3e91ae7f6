# SPDX-License-Identifier: GPL-2.0-or-later
"""What others cause fills no journal."""

import logging
import time

import pytest

from vmmswap.log import RateLimit


def test_a_hundred_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 5.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    limit = RateLimit()

    def logged() -> list[str]:
        records = [logging.makeLogRecord({"msg": "refused %d", "args": (number,)}) for number in range(250)]
        return [record.getMessage() for record in records if limit.filter(record)]

    first = logged()
    assert len(first) == 100
    assert first[0] == "refused 0"
    assert first[-1] == "refused 99; more of this kind is not logged for 60 s"
    assert logged() == []
    now_s += 60
    assert logged() == first
