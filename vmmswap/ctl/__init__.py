# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswapctl: the operators' tool."""

from vmmswap import without_tls as without_tls
