# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap/monitor/operations/: what comes of each order, as a transcript over a fake engine."""

import asyncio

import pytest

from tests.support.ordered_vm import TOTAL_PAGES, OrderedVm
from vmmswap.engine import FaultsStarved, Job, JobDone, Mode, Protected
from vmmswap.errors import (
    BusyError,
    NoSpaceError,
    NoSuchVMError,
    NotSupportedError,
    StorageFailedError,
)
from vmmswap.monitor.keep.manifest import Manifest
from vmmswap.monitor.spoiled import How, SpoiledError, Spoiler

DEADLINE_S = 60.0
OUT = {"swap_pages": TOTAL_PAGES, "resident_pages": 0, "tracking": True}
HALF_OUT = {"swap_pages": TOTAL_PAGES // 2, "resident_pages": TOTAL_PAGES // 2, "tracking": True}
IN = {"swap_pages": 0, "resident_pages": TOTAL_PAGES, "tracking": False}


def spoiled_by(pid: int, message: str) -> SpoiledError:
    return SpoiledError(Spoiler(pid, How.MAPS), message)


STRANGER = spoiled_by(7, "process 7 maps guest memory")
SHORT = (
    "not enough memory to swap all in: a limit; what is out is still served, and the rest follows when there"
    " is more"
)
SWAPS_IN = [
    "record wants_out=False",
    "engine start swap-in",
    "journal swap-in begins",
    "bus InProgress swap-in",
]
PAUSE = "0 pinned, longest pause 0 us"
WAITS = (
    "the guest waits for memory: the kernel has none for a page that it touched. The tightest limit: a limit."
    " Free memory there, or raise the limit"
)


@pytest.fixture
async def vm_with(monkeypatch, tmp_path):
    made = []

    def make(**options):
        made.append(OrderedVm(monkeypatch, tmp_path, **options))
        return made[-1]

    yield make
    for vm in made:
        vm.end()


@pytest.fixture
async def vm(vm_with):
    return vm_with()


@pytest.fixture
async def vm_out(vm_with):
    return vm_with(out_pages=TOTAL_PAGES)


def done(job, error=None, *, cancelled=False):
    return JobDone(job, error, cancelled)


async def until(condition):
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def test_enable(vm):
    await vm.controller.enable()
    assert vm.said() == [
        "record wants_out=True",
        "record resident_before=100000",
        "engine start swap-out",
        "journal swap-out begins",
        "bus InProgress swap-out",
    ]
    vm.tells(done(Job.SWAP_OUT), **OUT)
    assert vm.said() == [
        f"journal swap-out done after N ms: 0 pages resident, 100000 in the store, {PAUSE}",
        "bus Active",
    ]


async def test_disable(vm_out):
    await vm_out.controller.disable()
    vm_out.tells(done(Job.SWAP_IN), **IN)
    assert vm_out.said() == [
        *SWAPS_IN,
        "journal swap-in done after N ms: 100000 pages resident, 0 in the store",
        "bus Ready",
    ]


async def test_disable_turns_a_swap_out_round(vm):
    await vm.controller.enable()
    vm.said()
    await vm.controller.disable()
    assert vm.said() == ["record wants_out=False", "engine cancel", "bus InProgress swap-out"]
    vm.tells(done(Job.SWAP_OUT, cancelled=True), **HALF_OUT)
    assert vm.said() == [
        f"journal swap-out cancelled after N ms: 50000 pages resident, 50000 in the store, {PAUSE}",
        "engine start swap-in",
        "journal swap-in begins",
        "bus InProgress swap-in",
    ]


async def test_what_must_not_leave_is_refused_and_nothing_has_changed(vm):
    vm.checks.refusal = STRANGER
    with pytest.raises(NotSupportedError, match="process 7"):
        await vm.controller.enable()
    assert vm.said() == []
    assert vm.controller.status().state == "Ready"


async def test_a_later_order_wins_over_an_enable_that_is_still_looked_at(vm_out):
    vm_out.checks.gate = asyncio.Event()
    enable = asyncio.create_task(vm_out.controller.enable())
    await until(lambda: vm_out.checks.is_waiting)
    await vm_out.controller.disable()
    vm_out.checks.gate.set()
    await enable
    assert vm_out.said() == SWAPS_IN


async def test_a_vm_that_ends_while_it_is_looked_at_is_told_as_that(vm):
    vm.checks.gate = asyncio.Event()
    vm.checks.refusal = STRANGER
    enable = asyncio.create_task(vm.controller.enable())
    await until(lambda: vm.checks.is_waiting)
    vm.close()
    vm.checks.gate.set()
    with pytest.raises(NoSuchVMError, match="ended"):
        await enable
    assert vm.said() == ["bus Ready"]


async def test_a_job_that_cannot_start_has_failed_at_once(vm):
    vm.engine.fails = StorageFailedError("no file")
    await vm.controller.enable()
    assert vm.said() == [
        "record wants_out=True",
        "record resident_before=100000",
        "journal cannot start a swap-out: no file",
        "bus Failed  no file",
    ]


async def test_a_swap_in_waits_for_memory(vm_out):
    vm_out.room_bytes = 0
    await vm_out.controller.disable()
    assert vm_out.said() == [
        "record wants_out=False",
        f"journal {SHORT}",
        f"journal cannot start a swap-in: {SHORT}",
        f"bus Failed  {SHORT}",
    ]
    vm_out.room_bytes = 1 << 40
    await until(lambda: "engine start swap-in" in vm_out.transcript)
    assert vm_out.said()[-3:] == ["engine start swap-in", "journal swap-in begins", "bus InProgress swap-in"]


async def test_a_swap_in_that_uses_memory_up_is_held(vm_out):
    await vm_out.controller.disable()
    vm_out.said()
    vm_out.room_bytes = 0
    await until(lambda: "engine cancel" in vm_out.transcript)
    assert vm_out.said() == [f"journal {SHORT}", "engine cancel", "bus InProgress swap-in"]
    vm_out.tells(done(Job.SWAP_IN, cancelled=True), **HALF_OUT)
    assert vm_out.said()[:2] == [
        "journal swap-in cancelled after N ms: 50000 pages resident, 50000 in the store",
        f"bus Failed  {SHORT}",
    ]


async def test_exit_releases_what_is_all_in(vm_out):
    await vm_out.controller.exit()
    assert vm_out.said() == SWAPS_IN
    vm_out.tells(done(Job.SWAP_IN), **IN)
    assert vm_out.said()[1:] == ["released: Exit was called", "bus Ready", "bus Ready"]


async def test_exit_where_no_vm_is(vm):
    vm.close()
    vm.said()
    await vm.controller.exit()
    assert vm.said() == ["ends: Exit was called"]
    with pytest.raises(NoSuchVMError, match="no VMM has handed"):
        await vm.controller.enable()


async def test_an_exit_that_fails_is_called_off(vm_out):
    await vm_out.controller.exit()
    vm_out.said()
    vm_out.tells(done(Job.SWAP_IN, StorageFailedError("bad disk")), **HALF_OUT)
    assert vm_out.said() == [
        "journal swap-in failed after N ms: bad disk (50000 pages resident, 50000 in the store)",
        "journal the VM cannot be released: bad disk; the monitor stays",
        "bus Failed  bad disk",
    ]
    await vm_out.controller.enable()
    assert "engine start swap-out" in vm_out.said()


async def test_a_stop_tries_until_it_works(vm_out):
    vm_out.orders.release("told to stop", must=True)
    vm_out.said()
    vm_out.tells(done(Job.SWAP_IN, StorageFailedError("bad disk")), **HALF_OUT)
    await until(lambda: "engine start swap-in" in vm_out.transcript)
    with pytest.raises(BusyError):
        await vm_out.controller.enable()
    vm_out.said()
    vm_out.tells(done(Job.SWAP_IN), **IN)
    assert "released: told to stop" in vm_out.said()


async def test_exit_says_which_pages_keep_the_vm_here(vm_with):
    vm = vm_with(out_pages=3)
    vm.engine.set_stats(poisoned_pages=2)
    leaving = asyncio.create_task(vm.controller.exit())
    await until(lambda: "engine start swap-in" in vm.transcript)
    vm.tells(done(Job.SWAP_IN, StorageFailedError("2 pages are lost")), swap_pages=0)
    with pytest.raises(StorageFailedError, match="2 pages are lost"):
        await leaving


async def test_who_spoils_what_is_out_has_it_brought_back(vm_out):
    vm_out.orders.bring_back(STRANGER)
    vm_out.orders.bring_back(STRANGER)
    vm_out.orders.bring_back(spoiled_by(7, "it maps more of it by now"))
    vm_out.tells(done(Job.SWAP_IN), **IN)
    assert vm_out.said() == [
        "journal process 7 maps guest memory: all memory is swapped in now",
        *SWAPS_IN,
        "journal swap-in done after N ms: 100000 pages resident, 0 in the store",
        "bus Failed  process 7 maps guest memory",
    ]


async def test_a_second_process_that_spoils_what_is_out_is_reported_too(vm_out):
    vm_out.orders.bring_back(STRANGER)
    vm_out.orders.bring_back(spoiled_by(8, str(STRANGER)))
    vm_out.tells(done(Job.SWAP_IN), **IN)
    assert len([line for line in vm_out.said() if "all memory is swapped in now" in line]) == 2


async def test_trim(vm_out):
    await vm_out.controller.trim()
    assert vm_out.said() == ["engine start trim", "journal trim begins", "bus InProgress trim"]
    with pytest.raises(BusyError, match="a trim is under way"):
        await vm_out.controller.trim()


async def test_trim_while_nothing_is_out(vm):
    await vm.controller.trim()
    assert vm.said() == ["bus Ready"]


async def test_a_successor_looks_again_before_it_resumes_a_swap_out(vm_with):
    vm = vm_with(manifest=Manifest(name="web", wants_out=True, interrupted=1), out_pages=3)
    vm.orders.resume(Job.SWAP_OUT)
    assert vm.said() == ["bus InProgress swap-out"]
    await until(lambda: "engine start swap-out" in vm.transcript)
    assert vm.said()[-3:] == ["engine start swap-out", "journal swap-out begins", "bus InProgress swap-out"]


async def test_a_successor_that_may_not_resume_forgets_the_job(vm_with):
    vm = vm_with(manifest=Manifest(name="web", wants_out=True, interrupted=1), out_pages=3)
    vm.checks.refusal = STRANGER
    vm.orders.resume(Job.SWAP_OUT)
    await until(lambda: vm.transcript[-1:] == ["bus Failed  process 7 maps guest memory"])
    assert vm.said() == [
        "bus InProgress swap-out",
        "journal the swap-out that was accepted does not begin: process 7 maps guest memory",
        "engine forget the predecessor's job",
        "record interrupted=0",
        "bus Failed  process 7 maps guest memory",
    ]


async def test_a_successor_swaps_in_what_was_to_be_in(vm_with):
    vm = vm_with(manifest=Manifest(name="web", wants_out=False), out_pages=3)
    vm.orders.resume(Job.NONE)
    assert vm.said() == ["engine start swap-in", "journal swap-in begins", "bus InProgress swap-in"]


async def test_a_frozen_vmm_cannot_be_drained(vm):
    await vm.controller.enable()
    vm.said()
    vm.tells(Protected(), mode=Mode.FREEZE)
    assert vm.said() == ["engine cancel"]
    vm.tells(done(Job.SWAP_OUT, cancelled=True), **IN)
    assert vm.controller.status().error.startswith("the VMM must be frozen")
    assert vm.controller.status().error_name == NotSupportedError.dbus_name


async def test_a_guest_that_waits_for_memory_is_reported(vm_out):
    vm_out.tells(FaultsStarved(7))
    assert vm_out.said() == [f"journal {WAITS}", f"bus Failed  {WAITS}"]


async def test_a_swap_in_that_fails_for_want_of_memory_is_no_release(vm_out):
    await vm_out.controller.exit()
    vm_out.tells(done(Job.SWAP_IN, NoSpaceError("no memory")), **HALF_OUT)
    assert vm_out.controller.status().error_name == NoSpaceError.dbus_name
    assert vm_out.controller.served is not None


async def test_once_closed_nothing_is_done(vm_out):
    await vm_out.controller.enable()
    vm_out.said()
    vm_out.close()
    vm_out.tells(done(Job.SWAP_OUT), **OUT)
    assert vm_out.said() == ["bus Ready"]
