# SPDX-License-Identifier: GPL-2.0-or-later
"""A QMP server of the test's own process, which is thereby the VMM that listens: one client at a time, as
QEMU's.

with QmpServer(path) as server:
    server.on_stop = lambda: ...       # runs while the client waits for `stop`
    assert server.commands == ["qmp_capabilities", "query-status", "stop", "cont"]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": ["oob"]}}
EVENT = {"event": "BLOCK_JOB_READY", "timestamp": {"seconds": 1, "microseconds": 2}, "data": {}}

# Of the loop, after which a connection that a client has made before has come to _client(), which closes it.
# If the server is closed while it accepts one, nothing does (Server._attach() of Python 3.11).
_TURNS_TO_ACCEPT = 10


class QmpServer:
    """Commands are answered in order, one after the other: what hangs in one holds up the next."""

    def __init__(self, path: Path, *, state: str = "running") -> None:
        self.path = path
        self.state = state
        self.commands: list[str] = []
        self.on_stop: Callable[[], None] = lambda: None
        self.refuses: dict[str, str] = {}
        self.answers: dict[str, Callable[[dict[str, Any]], Any]] = {}  # of commands, by their arguments
        self.clients = 0
        self._loop = asyncio.new_event_loop()
        self._one = asyncio.Lock()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="QMP server")

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set_result, None)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._end = self._loop.create_future()
        server = await asyncio.start_unix_server(self._client, self.path)
        self._ready.set()
        await self._end
        for _ in range(_TURNS_TO_ACCEPT):
            await asyncio.sleep(0)
        server.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            async with self._one:
                with contextlib.suppress(ConnectionError):  # the client was killed
                    await self._talk(reader, writer)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients += 1
        writer.write(_line(GREETING))
        while line := await reader.readline():
            request = json.loads(line)
            command = request["execute"]
            self.commands.append(command)
            if command == "stop":
                await asyncio.to_thread(self.on_stop)
            writer.write(_line(EVENT))
            writer.write(_line({**self._answer(command, request.get("arguments", {})), "id": request["id"]}))

    def _answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command in self.refuses:
            return {"error": {"class": "GenericError", "desc": self.refuses[command]}}
        if command in self.answers:
            return {"return": self.answers[command](arguments)}
        if command == "query-status":
            return {"return": {"status": self.state, "running": self.state == "running"}}
        if command == "stop":
            self.state = "paused"
        if command == "cont":
            self.state = "running"
        return {"return": {}}


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\r\n"
