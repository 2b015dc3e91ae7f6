# SPDX-License-Identifier: GPL-2.0-or-later
"""For tests: VMMSWAP_PYTHON_FAILPOINTS="STEP=ACTION[@SKIP][;...]" ends this process at a step, or the step.

The engine's syntax (engine/src/base/failpoint.h), of which this is a part. ACTION: `kill`, an errno such as
`EIO` (every time), `once:EIO`, or `until:PATH`, which waits for that file to be there. SKIP times the step
passes first.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

VARIABLE = "VMMSWAP_PYTHON_FAILPOINTS"

# In the order in which an attach reaches them; those of a call once for each call. The monitor has some too,
# where it changes what a successor finds (vm.py).
CALL_STEPS = ("registers", "mask", "entry", "exit")
STEPS = (
    "seized",
    "interrupted",
    "stopped",
    "frame",
    *(f"call.{step}" for step in CALL_STEPS),
    "mask-restored",
    "registers-restored",
    "detached",
    "fetched",
    "initialised",
)
DEVICE_STEP = "device"  # open in a VMM that may not open it itself
_LOOK_AGAIN_S = 0.005
_reached: dict[str, int] = {}


def reach(step: str) -> None:
    """Do here what the environment says; OSError for an errno."""
    for point in os.environ.get(VARIABLE, "").split(";"):
        name, _, what = point.partition("=")
        if name == step:
            _act(step, *what.partition("@")[::2])


def _act(step: str, action: str, skip: str) -> None:
    _reached[step] = _reached.get(step, 0) + 1
    turn = _reached[step] - int(skip or 0)
    once, _, code = action.rpartition(":")
    if turn < 1 or (once == "once" and turn > 1):
        return
    if once == "until":
        while not Path(code).exists():
            time.sleep(_LOOK_AGAIN_S)
        return
    if code == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(getattr(errno, code), f"failpoint {step}")
