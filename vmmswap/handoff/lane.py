# SPDX-License-Identifier: GPL-2.0-or-later
"""Work on what a peer has sent, one piece after the other on a thread of its own.

Whoever passes an fd chooses what reading, stat() and close() of it do. close() of the last fd of a TCP socket
waits for as long as SO_LINGER says, each close() of a FUSE file for an answer of its server, and the last one
of a memfd frees all its memory. fds that nobody has received yet are closed by whoever closes the connection,
or receives with too little room. So all of that is done here: a peer can stop its own lane, and nothing else.

Order is kept, so that nothing is closed while earlier work uses it. The thread is there only while there is
work: a connection that is silent costs none.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

_log = logging.getLogger("vmmswap.handoff")

_T = TypeVar("_T")


class Lane:
    """Of one connection. Used from the event loop; its work runs beside it."""

    def __init__(self) -> None:
        self._work: deque[Callable[[], object]] = deque()
        self._lock = threading.Lock()
        self._is_running = False

    @property
    def backlog(self) -> int:
        """How much is not done yet."""
        with self._lock:
            return len(self._work) + self._is_running

    def put(self, work: Callable[[], object]) -> None:
        """Do it later. A daemon thread does, which the end of this process does not wait for."""
        with self._lock:
            self._work.append(work)
            if self._is_running:
                return
            self._is_running = True
        try:
            threading.Thread(target=self._run, name="hand-off", daemon=True).start()
        except RuntimeError as error:  # no more threads: the next put() tries anew
            with self._lock:
                self._is_running = False
            _log.error("cannot handle or close now what a peer has sent: %s", error)

    async def run(self, work: Callable[[], _T], discard: Callable[[_T], object] = lambda _: None) -> _T:
        """Its result or error. If cancelled, the work is not waited for, and its result is discarded here."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def settle(result: _T | None, error: BaseException | None) -> None:
            if future.done():
                if error is None and result is not None:
                    self.put(lambda: discard(result))
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]  # None where _T is

        def job() -> None:
            result: _T | None = None
            error: BaseException | None = None
            try:
                result = work()
            except BaseException as failure:
                error = failure
            try:
                loop.call_soon_threadsafe(settle, result, error)
            except RuntimeError:  # the loop has ended
                if error is None and result is not None:
                    discard(result)

        self.put(job)
        try:
            return await future
        except asyncio.CancelledError:
            # It may have come when the result was there and we had not run on since: nobody else has it then.
            if future.done() and not future.cancelled() and future.exception() is None:
                self.put(lambda: discard(future.result()))
            raise

    async def drained(self) -> None:
        """Return when all that was put here is done, which may be never."""
        await self.run(lambda: None)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._work:
                    self._is_running = False
                    return
                work = self._work.popleft()
            try:
                work()
            except Exception:  # for the others' sake
                _log.exception("what a peer has sent could not be closed")
