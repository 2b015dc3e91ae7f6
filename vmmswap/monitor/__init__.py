# SPDX-License-Identifier: GPL-2.0-or-later
"""The per-VM monitor.

From the outside in: `main` (command line), `recovery` (serves a VM that a predecessor left, before all else),
`start` and `monitor` (what runs in one process), `controller` (orders and the engine's answers; `machine` is
its logic alone), `vm` (what a VMM has registered), `fdstore` and `manifest` (what a successor finds), and the
helpers `coverage`, `headroom`, `tracing`, `service`, `drain` over `qmp`, `housekeeping`.
"""
