# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of a VMM is dealt with, whatever fails on the way."""

import asyncio
from types import SimpleNamespace

import pytest

from vmmswap.engine import Job
from vmmswap.errors import StorageFailedError
from vmmswap.monitor.mappers import succession
from vmmswap.monitor.mappers.succession import Heirs, Succession


class Vm:
    """With memory out. Its record cannot be written the first time."""

    def __init__(self):
        self.vmm = SimpleNamespace(pid=1, key=0, process_id=0, has_gone=True)
        self.heir = SimpleNamespace(pid=2, key=1, process_id=1, pidfd=0, is_forked=False, ranges=())
        self.processes = {1: self.heir}
        self.manifest = SimpleNamespace(vmm_key=0, attached=True, regions=())
        self.backing = SimpleNamespace(others_may_map=True)
        self.engine = SimpleNamespace(stats=lambda: SimpleNamespace(job=Job.NONE))
        self.failures = [StorageFailedError("the record of the VM has too many bytes")]
        self.changes = []

    def is_out(self):
        return True

    def change(self, **values):
        if self.failures:
            raise self.failures.pop()
        self.changes.append(values)

    def remove_process(self, _process_id):
        pass


@pytest.mark.parametrize("first", [ValueError("maps that nobody can read"), Heirs((1,))])
def test_a_look_that_fails_is_not_the_last(monkeypatch, first):
    looks = iter([first, Heirs((1,)), Heirs(())])

    def look(_question):
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return found

    async def run():
        vm, nobody = Vm(), asyncio.Event()
        Succession(vm, nobody.set, lambda _who: None).begin()
        await asyncio.wait_for(nobody.wait(), 60)

    monkeypatch.setattr(succession, "_look", look)
    monkeypatch.setattr(succession, "_question_of", lambda _vm: None)
    for pause in ("_LOOK_AGAIN_S", "_LOOK_LATER_S", "_RETRY_S"):
        monkeypatch.setattr(succession, pause, 0.001)
    asyncio.run(run())
