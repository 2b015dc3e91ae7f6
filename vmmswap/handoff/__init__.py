# SPDX-License-Identifier: GPL-2.0-or-later
"""The hand-off of guest memory: both sides of /run/vmmswap/NAME.sock.

`client` is the library for VMMs in Python. `server` is the monitor's side: it receives (`receiver`),
validates (`messages`, `fds`, `maps`, `probe`) and delivers checked requests to a `requests.HandoffHandler`.
"""
