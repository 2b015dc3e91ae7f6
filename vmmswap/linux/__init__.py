# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel offers and Python does not: fds with an owner, userfaultfd, ptrace, what /proc tells."""
