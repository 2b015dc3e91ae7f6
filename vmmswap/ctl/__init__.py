# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswapctl: the operators' tool."""
