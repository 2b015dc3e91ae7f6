# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts the planted thread anew where it has ended, though nobody asked it to: a debugger can do that."""

from __future__ import annotations

from collections.abc import Sequence

from vmmswap.attach import hold
from vmmswap.attach import target as target_module
from vmmswap.attach.mailbox import Mailbox
from vmmswap.attach.planting import Span, start_again
from vmmswap.attach.remote_call import CallRefusedError
from vmmswap.errors import NotSupportedError
from vmmswap.handoff.private import has_mover
from vmmswap.linux.process import thread_ids
from vmmswap.reasons import reason_of


def replant(pidfd: int, mailbox: int, spans: Sequence[Span], *, force: bool) -> bool:
    """True if it was gone, and is there again. NotSupportedError if it cannot be. Blocks, as attach does."""
    target = target_module.look_at(pidfd)
    if has_mover(target.pid, mailbox) or _was_just_started(target.pid, mailbox):
        return False
    try:
        return hold.run(target, lambda thread: start_again(thread, mailbox, spans), force=force)
    except (CallRefusedError, OSError) as error:
        raise NotSupportedError(
            f"{target} has no thread any more that moves its pages, and cannot be given another one"
            f" ({reason_of(error)}): detach, and attach again"
        ) from error


def _was_just_started(pid: int, mailbox: int) -> bool:
    """By a monitor that was killed before it had noted the number that the thread has for us."""
    found = [tid for tid in thread_ids(pid) if hold.is_planted(pid, tid)]
    if found:
        with Mailbox(mailbox) as view:
            view.box.tid = found[0]
    return bool(found)
