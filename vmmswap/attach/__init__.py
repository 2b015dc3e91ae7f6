# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach to a running VMM that knows nothing of us.

`attach.attach_vm` gives what a hand-off gives: memfds, and for each process that maps them a userfaultfd of
its own. `target` refuses what cannot be, `memory` finds guest memory, `hold` holds one thread of the VMM by
ptrace, `remote_call` has it make a few system calls, `plant` makes a userfaultfd that way. docs/attach.md
explains it to operators.
"""
