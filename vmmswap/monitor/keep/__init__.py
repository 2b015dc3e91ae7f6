# SPDX-License-Identifier: GPL-2.0-or-later
"""What outlives this process for its successor: fds, the VM's record, a message that is sent only once."""
