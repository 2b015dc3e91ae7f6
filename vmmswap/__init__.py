# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap: takes an idle VM's memory out, and brings it back page by page when the VM wakes."""

__version__ = "0.1.0"
