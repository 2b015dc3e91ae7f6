# SPDX-License-Identifier: GPL-2.0-or-later
"""Follows which processes map guest memory, and where: forks, ends, strangers."""
