# SPDX-License-Identifier: GPL-2.0-or-later
"""The start of a monitor but for what its guest waits for: checks, the socket, and the event loop."""

from __future__ import annotations

import asyncio
import logging
import os

from vmmswap import log
from vmmswap.attach.options import Options
from vmmswap.linux.userfaultfd import open_userfaultfd
from vmmswap.monitor import own_memory
from vmmswap.monitor.command import EXIT_FAILURE, Command
from vmmswap.monitor.keep import fdstore
from vmmswap.monitor.listening import listener_of
from vmmswap.monitor.monitor import Monitor
from vmmswap.monitor.setup import Setup
from vmmswap.monitor.swap_directory import check_swap_dir
from vmmswap.region_text import parse_region


def run(setup: Setup, options: Command, listener_fd: int | None) -> int:
    """Return the exit status. listener_fd: the socket unit's."""
    logging.getLogger("vmmswap.handoff").addFilter(log.RateLimit())
    has_vm = setup.found is not None or fdstore.has_vm(setup.kept)
    if not has_vm:
        if setup.config.has_disk_tier:
            check_swap_dir(setup.swap_dir)
        os.close(open_userfaultfd())
    if options.attach is not None and not has_vm:
        from vmmswap.attach.target import open_target  # noqa: PLC0415  only attached VMs need it

        setup.attach = open_target(options.attach)
        setup.attach_options = Options(tuple(map(parse_region, options.region)), options.force)
        setup.attach_qmp = options.qmp
    may_lack = setup.attach is not None or has_vm
    with listener_of(options.listen, listener_fd, may_lack=may_lack) as listener:
        setup.listener = listener
        own_memory.settle()
        loop = asyncio.new_event_loop()  # never closed: main() ends the process
        asyncio.set_event_loop(loop)
        return _serve(loop, Monitor(setup))


def _serve(loop: asyncio.AbstractEventLoop, monitor: Monitor) -> int:
    """The exit status. A monitor that has served a VM is restarted, whatever ended it."""
    try:
        return loop.run_until_complete(monitor.run())
    except Exception:
        if not monitor.has_served:
            raise
        logging.getLogger("vmmswap").exception("bug in the monitor")
        return EXIT_FAILURE
