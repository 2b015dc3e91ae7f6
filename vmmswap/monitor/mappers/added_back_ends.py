# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds vhost-user devices that QEMU was given while it ran. Its command line does not list them; QMP does.
For a character device that was added so, QEMU tells if it listens, but not if it connects again; we assume
that it does.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

from vmmswap.attach import back_ends
from vmmswap.attach.back_ends import CommandLine
from vmmswap.errors import NotSupportedError, VmmswapError
from vmmswap.monitor.qmp import Qmp, QmpRefusedError
from vmmswap.reasons import reason_of

_log = logging.getLogger("vmmswap.back_ends")

_LIMIT_S = 3.0
_PLACES = ("/machine/peripheral", "/machine/peripheral-anon", "/objects")
_OF_NETWORK = re.compile(r"type=vhost-user,.*? to ([^\s,]+)")


async def check_added_back_ends(qmp_path: str, pid: int, target: str, given: CommandLine) -> None:
    """NotSupportedError if a back-end may connect again. If QMP does not answer, log a warning and assume the
    best.
    """
    try:
        async with asyncio.timeout(_LIMIT_S):
            qmp = await Qmp.connect(qmp_path, pid)
            try:
                users = {name async for name in _users(qmp)}
                listening = await _listening(qmp) if users else set()
            finally:
                qmp.close()
    except (VmmswapError, TimeoutError) as error:
        reason = reason_of(error) or f"{qmp_path} does not answer within {_LIMIT_S:g} s"
        _log.warning("cannot tell if %s was given vhost-user devices while it ran: %s", target, reason)
        return
    for chardev in sorted(users):
        if chardev in listening or given.again.get(chardev):
            raise back_ends.refusal(target, chardev)
        if chardev not in given.again:
            raise NotSupportedError(
                f"{target} was given a vhost-user back-end while it ran (chardev {chardev}), and QEMU does"
                " not say if that may connect again. A back-end that connects while memory is out reads"
                " zeros. Attach with the option force if it may not connect again, or if you restart none"
                " while memory is out"
            )


async def _users(qmp: Qmp) -> AsyncIterator[str]:
    """Return the character devices of all vhost-user devices."""
    for place in _PLACES:
        for item in _dicts(await qmp.execute("qom-list", {"path": place})):
            if "vhost-user" in str(item.get("type")):
                where = {"path": f"{place}/{item.get('name')}", "property": "chardev"}
                try:
                    yield str(await qmp.execute("qom-get", where))
                except QmpRefusedError:
                    continue  # of a kind that has none
    text = await qmp.execute("human-monitor-command", {"command-line": "info network"})
    for name in _OF_NETWORK.findall(str(text)):
        yield name


async def _listening(qmp: Qmp) -> set[str]:
    found = _dicts(await qmp.execute("query-chardev"))
    return {str(item.get("label")) for item in found if ",server=on" in str(item.get("filename"))}


def _dicts(answer: Any) -> list[dict[str, Any]]:  # noqa: ANN401  what a server says is its own
    return [item for item in answer if isinstance(item, dict)] if isinstance(answer, list) else []
