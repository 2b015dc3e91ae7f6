# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM without memory, for tests of the bus: it takes each order, records it, and moves through the states.

Run as a program (`python -m tests.support.recording_vm NAME ADDRESS [OWNER_UID]`) it is a monitor's worth of
D-Bus in a process of its own; it prints "ready" when it is on the bus.
"""

import asyncio
import dataclasses
import signal
import sys
from collections.abc import Callable

from vmmswap.bus.manager import publish
from vmmswap.errors import BusyError, NotSupportedError
from vmmswap.status import Operation, State, Status


class RecordingVm:
    """A VmControl. `orders` holds what it was told; `fail_next` makes its next order raise."""

    def __init__(self, name: str, owner_uid: int = 0) -> None:
        self.name = name
        self.owner_uid = owner_uid
        self.orders: list[str] = []
        self.fail_next: BaseException | None = None
        self.gate: asyncio.Event | None = None
        self.ended = asyncio.Event()
        self._listeners: list[Callable[[Status], None]] = []
        self._status = Status(
            name=name, owner_uid=owner_uid, total_pages=1 << 40, resident_pages=3, processes=2
        )

    def status(self) -> Status:
        return self._status

    async def configuration(self) -> list[tuple[str, str, str, str]]:
        return [("Mode", "auto", "default", "live"), ("Workers", "4", "/etc/vmmswap.conf:2", "")]

    async def refresh(self) -> None:
        """All figures are known."""

    async def enable(self) -> None:
        await self._take("enable")
        self.change(state=State.IN_PROGRESS, operation=Operation.SWAP_OUT)
        self.change(state=State.ACTIVE, operation=Operation.NONE, swap_pages=3, resident_pages=0)

    async def disable(self) -> None:
        await self._take("disable")
        self.change(state=State.READY, operation=Operation.NONE, swap_pages=0, resident_pages=3)

    async def trim(self) -> None:
        await self._take("trim")
        raise NotSupportedError(f"trim: {self.name} is Ready, so nothing is stored; enable it first")

    async def wake(self) -> None:
        await self._take("wake")

    async def flush(self) -> None:
        await self._take("flush")

    async def start_page_fault_logging(self) -> None:
        self.orders.append("log start")
        self.change(page_fault_logging=True)

    async def stop_page_fault_logging(self) -> None:
        self.orders.append("log stop")
        self.change(page_fault_logging=False)

    async def exit(self) -> None:
        await self._take("exit")
        self.ended.set()

    def subscribe(self, listener: Callable[[Status], None]) -> None:
        self._listeners.append(listener)

    def change(self, **fields: object) -> None:
        self._status = dataclasses.replace(self._status, **fields)  # type: ignore[arg-type]
        for listener in self._listeners:
            listener(self._status)

    async def _take(self, order: str) -> None:
        self.orders.append(order)
        if self.gate:
            await self.gate.wait()
        if self.fail_next:
            error, self.fail_next = self.fail_next, None
            raise error


class BusyVm(RecordingVm):
    async def enable(self) -> None:
        raise BusyError(f"{self.name} is busy: wait")

    async def disable(self) -> None:
        raise ValueError("a bug of the test's own")


async def serve(name: str, address: str, owner_uid: int) -> None:
    vm = (BusyVm if name.startswith("busy") else RecordingVm)(name, owner_uid)
    connection = await publish(vm, address)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, vm.ended.set)
    print("ready", flush=True)
    await vm.ended.wait()
    await connection.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0))
