# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that touches D-Bus. `manager.publish` is all that a monitor needs of it.

From the bottom: `dbus` (bytes <-> messages; the one module that imports dbus-next), `transport` (one stream
to the bus), `connection` (calls, signals, names, reconnecting), `interface` (tables and XML), `dispatch` (a
call becomes a reply), `authority` (who may call), `manager` (org.vmmswap.Manager).
"""
