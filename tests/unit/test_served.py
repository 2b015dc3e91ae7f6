# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap/monitor/served.py: a VM is made whole, released or detached, and closed in one place."""

import asyncio

import pytest

from tests.support.ordered_vm import OrderedVm
from vmmswap.engine import Job, JobDone
from vmmswap.errors import NoSuchVMError
from vmmswap.monitor import served
from vmmswap.monitor.keep.manifest import Manifest
from vmmswap.monitor.mappers import attached as attached_module
from vmmswap.monitor.served import ServedVm
from vmmswap.monitor.vm import Vm

DEADLINE_S = 60.0
IN = {"swap_pages": 0, "tracking": False}
CLOSED = ["closed: watch", "closed: processes"]


class Part:
    """Of a served VM: says when it is closed."""

    def __init__(self, say, name):
        self.close = lambda: say(f"closed: {name}")
        self.say = say

    async def stop(self):
        self.say("stopped: watch")

    def check_before_exit(self):
        """Nothing is in the way."""


class ServedOverFake(OrderedVm):
    """A ServedVm over a fake engine. Its processes and their watch are fake, too, and so is what detaches."""

    def __init__(self, monkeypatch, tmp_path, *, attached=False, out_pages=3):
        monkeypatch.setattr(served, "Processes", lambda *_: Part(self.say, "processes"))
        monkeypatch.setattr(served, "Lookout", lambda *_: Part(self.say, "watch"))
        monkeypatch.setattr(attached_module, "Watch", lambda *_: Part(self.say, "watch"))
        monkeypatch.setattr(attached_module, "detach", self.taken_out)
        monkeypatch.setattr(Vm, "close", self.freed)
        self.left = []
        manifest = Manifest(name="web", wants_out=True, attached=attached)
        super().__init__(monkeypatch, tmp_path, manifest=manifest, out_pages=out_pages)

    def serve(self, error):
        self.controller.served = self.served = ServedVm(self.vm, self.around, error=error)
        self.pump = self.served._events

    async def freed(self):
        self.say("freed")

    async def taken_out(self, vm):
        self.say(f"taken out of the processes{' by force' if vm.manifest.forced else ''}")
        return self.left

    def close(self):
        """As Monitor.forget() does it."""
        if self.controller.served is not None:
            self.controller.served.close()
            self.controller.served = None
            self.controller.changed()


@pytest.fixture
async def vm_with(monkeypatch, tmp_path):
    made = []

    def make(**options):
        made.append(ServedOverFake(monkeypatch, tmp_path, **options))
        return made[-1]

    yield make
    for vm in made:
        vm.end()


async def until(condition):
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def test_exit_releases_the_vm_and_closes_all_of_it(vm_with):
    vm = vm_with()
    await vm.controller.exit()
    vm.said()
    vm.tells(JobDone(Job.SWAP_IN, None, cancelled=False), **IN)
    assert vm.said()[1:] == ["journal the VM is released: Exit was called", *CLOSED, "bus Ready", "bus Ready"]
    await until(lambda: vm.transcript == ["freed"])
    with pytest.raises(NoSuchVMError):
        vm.engine.stats()


@pytest.mark.parametrize("left", [[], ["7 (qemu)"]])
async def test_an_attached_vm_is_detached_once_all_is_in(vm_with, left):
    vm = vm_with(attached=True)
    vm.left = left
    await vm.controller.exit()
    vm.said()
    vm.tells(JobDone(Job.SWAP_IN, None, cancelled=False), **IN)
    await until(lambda: "freed" in vm.transcript)
    how = "an idle userfaultfd stays in 7 (qemu)" if left else "the VMM is as it was"
    assert vm.said()[1:] == [
        "bus Ready",
        "stopped: watch",
        "taken out of the processes",
        f"journal detached: {how}",
        *CLOSED,
        "bus Ready",
        "freed",
    ]


async def test_detach_is_done_once_whoever_asks(vm_with):
    vm = vm_with(attached=True, out_pages=0)
    first, second = vm.served.detach(), vm.served.detach()
    assert first is second
    await first
    assert vm.said().count("taken out of the processes") == 1


async def test_a_part_that_cannot_be_closed_keeps_no_other_open(vm_with):
    vm = vm_with()

    def refuse():
        raise OSError(5, "no")

    vm.served._parts.callback(refuse)
    await vm.served.close()
    assert [line for line in vm.said() if line.startswith("closed")] == CLOSED
    with pytest.raises(NoSuchVMError):
        vm.engine.stats()


async def test_what_cannot_be_made_whole_leaves_nothing_open(vm_with, monkeypatch):
    def refuse(*_arguments):
        raise OSError(24, "no fd left")

    vm = vm_with()
    vm.close()
    vm.said()
    vm.engine._is_retired = False
    monkeypatch.setattr(served, "Succession", refuse)
    with pytest.raises(OSError, match="no fd left"):
        ServedVm(vm.vm, vm.around)
    assert vm.said() == CLOSED
