# SPDX-License-Identifier: GPL-2.0-or-later
"""For tests: VMMSWAP_ATTACH_FAILPOINT=STEP:kill or STEP:error ends this process or the step.

STEP@N: when it is reached for the Nth time.
"""

from __future__ import annotations

import errno
import os
import signal

VARIABLE = "VMMSWAP_ATTACH_FAILPOINT"

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
_reached: dict[str, int] = {}


def reach(step: str) -> None:
    """Do here what the environment says; OSError (EIO) for `error`."""
    wanted, _, action = os.environ.get(VARIABLE, "").partition(":")
    name, _, turn = wanted.partition("@")
    if name != step:
        return
    _reached[step] = _reached.get(step, 0) + 1
    if _reached[step] != int(turn or 1):
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(errno.EIO, f"failpoint {step}")
