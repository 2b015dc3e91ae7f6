# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor's command line, as a person writes it and as the unit does, with both builds of the engine."""

import os
import subprocess
import sys

import pytest

from vmmswap.monitor import command_line, main
from vmmswap.monitor.command import Command

PARSES = "from vmmswap.monitor.command_line import parse; print(parse(['web', '--force', '--attach', '7']))"


def test_the_units_words_mean_what_the_parser_makes_of_them():
    assert main._command(["--", "web"]) == command_line.parse(["--", "web"]) == Command("web")


@pytest.mark.parametrize("engine", ["", "failpoints"])
def test_options(engine):
    done = subprocess.run(
        [sys.executable, "-c", PARSES],
        env={**os.environ, "VMMSWAP_ENGINE": engine},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(Command("web", attach=7, force=True)), done.stderr
