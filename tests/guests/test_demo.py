# SPDX-License-Identifier: GPL-2.0-or-later
"""`make demo GUEST=qemu`, as a newcomer sees it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.guests import qemu
from tests.support.bus import missing
from tests.support.programs import ROOT

pytestmark = pytest.mark.skipif(
    bool(qemu.missing() or missing()), reason=qemu.missing() or missing() or "nothing is missing"
)


@pytest.mark.slow
def test_the_demo_plays_to_its_end() -> None:
    command = [sys.executable, "-m", "tests.guests.demo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    told = done.stdout.splitlines()
    assert sum("swapped out, the " in line for line in told) == 2
    assert sum("has compared" in line and "all right" in line for line in told) == 2
    assert sum("the guest sees" in line for line in told) == 3
    assert told[-1] == "Detached: QEMU is as it was. The guest powers off."
