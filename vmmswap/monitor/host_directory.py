# SPDX-License-Identifier: GPL-2.0-or-later
"""The directory that the monitors of a host share.

Only those that systemd has started have it: the unit gives it to them (RuntimeDirectory=), and nobody but
root may open it.
"""

from __future__ import annotations

import os
from pathlib import Path


def shared_directory() -> Path | None:
    """None: nobody shares one with us."""
    first = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(first) if first else None
