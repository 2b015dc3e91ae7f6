# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswapd: all VMs of a host under one bus name. It holds no state: the bus and systemd know all."""

from vmmswap import without_tls as without_tls
