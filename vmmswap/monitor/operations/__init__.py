# SPDX-License-Identifier: GPL-2.0-or-later
"""What a served VM is told to do, and the engine's jobs that do it."""
