# SPDX-License-Identifier: GPL-2.0-or-later
"""Which processes map guest memory, as time goes by: forks, ends, strangers, and where they map it."""
