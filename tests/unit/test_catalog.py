# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal's catalog: an explanation for each MESSAGE_ID, in the form that systemd compiles."""

import re
from pathlib import Path

from vmmswap.message_ids import ALL

TEXT = (Path(__file__).parents[2] / "systemd" / "vmmswap.catalog").read_text()
ENTRIES = re.findall(r"^-- ([0-9a-f]{32})\n(.*?)\n\n(.*?)(?=^-- |\Z)", TEXT, re.MULTILINE | re.DOTALL)


def test_every_id_has_an_entry_and_none_is_unknown() -> None:
    assert [identifier for identifier, _, _ in ENTRIES] == list(ALL.values())
    assert TEXT.count("\n-- ") == len(ENTRIES)


def test_every_entry_says_what_it_is_and_explains() -> None:
    subjects = set()
    for _, header, explanation in ENTRIES:
        subject, origin = header.splitlines()
        assert origin == "Defined-By: vmmswap"
        subjects.add(subject.removeprefix("Subject: "))
        assert len(explanation.split()) > 20, subject
    assert len(subjects) == len(ENTRIES)


def test_lines_fit_a_terminal() -> None:
    """A field's value is mostly shorter than its name."""
    explanations = [line for _, _, text in ENTRIES for line in text.splitlines()]
    assert [line for line in explanations if len(line) > 96] == []
