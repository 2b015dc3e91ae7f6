# SPDX-License-Identifier: GPL-2.0-or-later
"""Another host's system bus, reached as `systemctl --host` does: ssh runs systemd-stdio-bridge there."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from vmmswap.ctl.failure import CtlError, ExitStatus, one_line

_BRIDGE = "systemd-stdio-bridge"


@contextlib.asynccontextmanager
async def ssh_bus(host: str) -> AsyncIterator[str]:
    """The address of a socket that leads to the host's system bus; the first connection starts ssh.

    ssh gets that connection as its stdin and stdout: nothing is copied here. If the block fails for want of a
    bus, what ssh had to say becomes the error.
    """
    if not host or host.startswith("-"):
        raise CtlError(ExitStatus.BAD_USAGE, f"--host {host!r} is not a host: use USER@HOST or HOST")
    with (
        tempfile.TemporaryDirectory(prefix="vmmswapctl-") as folder,
        tempfile.TemporaryFile() as complaints,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        path = Path(folder) / "bus"
        listener.bind(str(path))
        listener.listen(1)
        listener.setblocking(False)
        bridge = asyncio.create_task(_bridge(host, listener, complaints.fileno()))
        try:
            yield f"unix:path={path}"
        except CtlError as error:
            if error.status is not ExitStatus.NO_DAEMON:
                raise
            complaints.seek(0)
            reason = one_line(complaints.read().decode(errors="replace")) or str(error)
            raise CtlError(
                ExitStatus.NO_DAEMON,
                f"no bus of {host} through ssh: {reason}; does `ssh {host} {_BRIDGE}` work?",
            ) from error
        finally:
            bridge.cancel()
            await asyncio.gather(bridge, return_exceptions=True)


async def _bridge(host: str, listener: socket.socket, complaints: int) -> None:
    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
    with connection:
        connection.setblocking(True)
        stream = connection.fileno()
        process = subprocess.Popen(
            ["ssh", "-xT", "--", host, _BRIDGE], stdin=stream, stdout=stream, stderr=complaints
        )
    try:
        await asyncio.Event().wait()  # until the block is left; if ssh ends first, the bus connection ends
    finally:
        process.terminate()
        process.wait()
