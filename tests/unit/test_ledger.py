# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap/monitor/ledger.py: what is charged to which hour, and what is made of a file that is not right."""

import json

import pytest

from vmmswap.monitor import ledger
from vmmswap.monitor.ledger import HOURS_A_DAY, HOURS_KEPT, DamagedError, Ledger

NOW = 500_000


def test_the_counter_is_charged_once_and_a_new_one_from_its_start():
    book = Ledger()
    assert book.charge("a", 100, NOW)
    assert not book.charge("a", 100, NOW)
    assert book.charge("a", 150, NOW + 1)
    assert book.charge("b", 7, NOW + 1)
    assert book.hours == {NOW: 100, NOW + 1: 57}
    assert book.charge("b", 5, NOW + 1)  # a write that failed was counted out again
    assert book.hours[NOW + 1] == 55


def test_a_day_is_the_hour_that_has_begun_and_24_before():
    book = Ledger({NOW - 25: 1, NOW - 24: 10, NOW - 1: 100, NOW: 1000})
    assert book.written_today(NOW) == 1110
    assert book.written_today(NOW + 1) == 1100


def test_hours_are_kept_for_28_days():
    book = Ledger({NOW - HOURS_KEPT: 1, NOW - HOURS_KEPT + 1: 2})
    book.settle_clock(NOW)
    assert book.hours == {NOW - HOURS_KEPT + 1: 2}


def test_a_clock_that_was_set_back_frees_nothing_and_locks_nothing_for_ever():
    book = Ledger({NOW: 5, NOW + 100_000: 10, NOW + 3: 20})
    book.settle_clock(NOW)
    assert book.hours == {NOW: 35}
    assert book.written_today(NOW + HOURS_A_DAY) == 0


def test_what_was_written_is_read(tmp_path):
    book = Ledger({NOW: 5, NOW - 3: 20}, "boot:12", 25)
    ledger.write(tmp_path / "web.written", book.to_text())
    assert ledger.read(tmp_path / "web.written") == book
    assert [path.name for path in tmp_path.iterdir()] == ["web.written"]
    assert (tmp_path / "web.written").stat().st_mode & 0o777 == 0o600


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    text = Ledger({NOW: 5, NOW - 3: 20}, "boot:12", 25).to_text().encode()
    path = tmp_path / "web.written"
    for idx in range(len(text) - 1):  # the last byte ends the line
        for bit in (0, 3, 6):
            path.write_bytes(text[:idx] + bytes([text[idx] ^ 1 << bit]) + text[idx + 1 :])
            with pytest.raises(DamagedError):
                ledger.read(path)
        path.write_bytes(text[:idx])
        with pytest.raises(DamagedError):
            ledger.read(path)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"crc32": 0}', "[" * 100_000, json.dumps({"version": 1, "hours": 3})]
)
def test_what_is_no_ledger_is_damaged(text):
    with pytest.raises(DamagedError):
        Ledger.from_text(text)


def test_a_missing_file_is_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError):
        ledger.read(tmp_path / "absent")
    with pytest.raises(DamagedError, match="cannot be read"):
        ledger.read(tmp_path)


def test_a_budget_that_is_used_up_comes_back_by_the_hour():
    book = ledger.used_up(HOURS_A_DAY * 10, NOW)
    assert book.written_today(NOW) == HOURS_A_DAY * 10
    assert book.written_today(NOW + 1) == (HOURS_A_DAY - 1) * 10
    assert book.written_today(NOW + HOURS_A_DAY) == 0
    assert len(book.hours) == HOURS_KEPT
    assert ledger.used_up(1, NOW).written_today(NOW) >= 1
