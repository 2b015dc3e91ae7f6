# SPDX-License-Identifier: GPL-2.0-or-later
"""Whom polkit has ask for a password: on a terminal, pkttyagent, as systemctl does."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

_AGENT = "pkttyagent"


@contextlib.contextmanager
def password_agent(*, may_ask: bool) -> Iterator[None]:
    """An agent for this process while the block runs, where there is a terminal to ask on. One that is there
    already, such as a desktop's, comes first.
    """
    program = shutil.which(_AGENT)
    if not may_ask or os.geteuid() == 0 or program is None or not sys.stdin.isatty():
        yield
        return
    # polkit takes a fallback only for a caller in a login session, behind that session's own agent.
    fallback = ["--fallback"] if "XDG_SESSION_ID" in os.environ else []
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as registered:
        agent = subprocess.Popen([program, "--notify-fd", str(writing), *fallback], pass_fds=[writing])
        os.close(writing)
        try:
            registered.read()  # until it has registered, or has ended
            yield
        finally:
            agent.terminate()
            agent.wait()
