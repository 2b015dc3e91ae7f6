# SPDX-License-Identifier: GPL-2.0-or-later
"""How many times longer a test waits for what must happen: under emulation, more than once."""

import os

PATIENCE = float(os.environ.get("VMMSWAP_TEST_PATIENCE", "1"))
