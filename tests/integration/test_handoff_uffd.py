# SPDX-License-Identifier: GPL-2.0-or-later
"""Userfaultfds of all kinds at the hand-off: what is taken, what is refused, and what a VMM is told to do."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.handoff import (
    GuestMemory,
    Mapper,
    RecordingHandler,
    further_limits,
    open_fds,
    refused,
    register,
    register_message,
    serving,
)
from vmmswap.errors import AccessDeniedError, InvalidRegionError, NotSupportedError
from vmmswap.handoff import fds, proof
from vmmswap.handoff import probe as probe_module
from vmmswap.handoff.client import Region, VmmClient, open_userfaultfd
from vmmswap.handoff.probe import Verdict, probe
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.linux import userfaultfd
from vmmswap.linux.userfaultfd import Feature

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the monitor does")


@pytest.fixture(autouse=True)
def no_fd_leaks():
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def guest():
    with GuestMemory() as memory:
        yield memory


@pytest.mark.parametrize("with_dummy", [True, False])
async def test_user_mode_only_uffd(guest, with_dummy):
    guest.renew_uffd(user_mode_only=True)
    dummy_page = guest.dummy.addr if with_dummy else None
    async with serving(RecordingHandler()) as connect:
        data = register_message(guest, dummy_page=dummy_page)
        kind, message = await refused(connect, data, [guest.uffd, guest.memfd])
    assert kind == "NotSupported"
    assert "user mode only" in message


async def test_user_mode_only_uffd_of_another_process(guest):
    async with serving(RecordingHandler()) as connect:
        client, _ = await register(connect, guest)
        with (
            client,
            await asyncio.to_thread(Mapper, guest.memfd, guest.size_bytes, "user-mode-only") as other,
        ):
            region = Region(other.addr, guest.size_bytes, 0, 0)
            with pytest.raises(NotSupportedError, match="user mode only"):
                await asyncio.to_thread(
                    client.add_process, [region], other.uffd, other.pidfd, dummy_page=other.dummy_page
                )


async def test_full_memory_without_a_dummy_page_is_unproven(guest):
    guest.map[:] = bytes(guest.size_bytes)
    handler = RecordingHandler()
    async with serving(handler) as connect:
        with VmmClient(connect()) as client:
            await asyncio.to_thread(client.register, [guest.region], [guest.memfd], guest.uffd)
    assert not handler.requests[0].process.is_proven
    assert "send a dummy_page" in further_limits(handler.requests[0].process)[0]


@pytest.mark.parametrize("is_touched", [False, True])
async def test_a_dummy_page_that_nobody_may_be_asked_about_is_tried(guest, monkeypatch, is_touched):
    """As in the unit's sandbox: a page map has mode 0400, and a VMM is often another user's."""
    monkeypatch.setattr(proof, "_is_populated", lambda _pid, _addr: None)
    guest.map[:] = bytes(guest.size_bytes)
    if is_touched:
        ctypes.memset(guest.dummy.addr, 0, 1)
    handler = RecordingHandler()
    async with serving(handler) as connect:
        client, _ = await register(connect, guest)
        client.close()
    assert handler.requests[0].process.is_proven != is_touched


@pytest.mark.parametrize("feature", [Feature.WP_ASYNC, Feature.SIGBUS])
async def test_uffd_with_a_feature_that_takes_faults_away(guest, feature):
    if feature not in userfaultfd.kernel_features():
        pytest.skip(f"this kernel has no {feature.name}")
    userfaultfd.api(guest.uffd, feature)
    async with serving(RecordingHandler()) as connect:
        kind, message = await refused(connect, register_message(guest), [guest.uffd, guest.memfd])
    assert kind == "NotSupported"
    assert feature.name in message


async def test_uffd_initialised_without_features(guest):
    userfaultfd.api(guest.uffd, 0)
    handler = RecordingHandler()
    async with serving(handler) as connect:
        client, _ = await register(connect, guest)
        client.close()
    info = handler.requests[0].process.uffd_info
    assert (info.features, info.event_fork, info.write_protect) == (Feature(0), False, False)
    assert [limit.split(":")[0] for limit in info.limits] == [
        "EVENT_FORK",
        "EVENT_REMOVE",
        "PAGEFAULT_FLAG_WP",
        "WP_HUGETLBFS_SHMEM",
        "POISON",
    ]


async def test_uffd_not_initialised_gets_named_features_only(guest):
    handler = RecordingHandler()
    async with serving(handler) as connect:
        client, _ = await register(connect, guest)
        client.close()
    features = userfaultfd.features_of(guest.uffd)
    assert features == handler.requests[0].process.uffd_info.features
    assert features == userfaultfd.WANTED & userfaultfd.kernel_features()
    assert not features & (Feature.WP_ASYNC | Feature.SIGBUS)


async def test_probe_of_a_process_that_reads_the_messages_itself(guest):
    """It clears O_NONBLOCK and steals what comes. The probe ends all the same, with the right verdict."""
    async with serving(RecordingHandler()) as connect:
        client, _ = await register(connect, guest)
        with client, await asyncio.to_thread(Mapper, guest.memfd, guest.size_bytes, "steal") as other:
            region = Region(other.addr, guest.size_bytes, 0, 0)
            await asyncio.to_thread(
                client.add_process, [region], other.uffd, other.pidfd, dummy_page=other.dummy_page
            )


async def test_probe_gives_up_in_time(guest, monkeypatch):
    monkeypatch.setattr(probe_module, "_PATIENCE_S", 0.0)
    userfaultfd.api(guest.uffd, 0)
    verdict = await asyncio.to_thread(probe, guest.uffd, os.getpid(), guest.dummy.addr, "dummy_page")
    assert verdict is Verdict.UNKNOWN


async def test_probe_of_a_page_that_cannot_be_registered(guest):
    userfaultfd.api(guest.uffd, 0)
    other = open_userfaultfd()
    userfaultfd.api(other, 0)
    userfaultfd.register_missing(other, guest.dummy.addr, PAGE_SIZE)
    with pytest.raises(InvalidRegionError, match=r"dummy_page: .* another userfaultfd is registered there"):
        await asyncio.to_thread(probe, guest.uffd, os.getpid(), guest.dummy.addr, "dummy_page")
    os.close(other)
    with pytest.raises(InvalidRegionError, match="dummy_page: 0x10000 cannot be registered"):
        await asyncio.to_thread(probe, guest.uffd, os.getpid(), 0x10000, "dummy_page")


async def test_page_is_free_again_after_the_probe(guest):
    userfaultfd.api(guest.uffd, 0)
    for _ in range(2):
        verdict = await asyncio.to_thread(probe, guest.uffd, os.getpid(), guest.dummy.addr, "dummy_page")
        assert verdict is Verdict.KERNEL_FAULTS
    other = open_userfaultfd()
    userfaultfd.api(other, 0)
    userfaultfd.register_missing(other, guest.dummy.addr, PAGE_SIZE)
    os.close(other)


def run_without_ptrace_rights(code, *arguments, pass_fds=()):
    """What Python code, which may import vmmswap, prints in a process without CAP_SYS_PTRACE."""
    command = ["setpriv", "--bounding-set=-sys_ptrace", sys.executable, "-B", "-c", code, *arguments]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, pass_fds=pass_fds, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def test_without_ptrace_rights_the_fork_event_is_a_limit(guest):
    code = """if True:
        import sys
        from vmmswap.handoff import fds
        print(*fds.check_uffd(int(sys.argv[1])).limits, sep=";")"""
    told = run_without_ptrace_rights(code, str(guest.uffd), pass_fds=[guest.uffd])
    limits = told.strip().split(";")
    assert limits[0] == "EVENT_FORK: forked children are not seen by themselves"
    lacks = [] if Feature.POISON in userfaultfd.kernel_features() else ["POISON"]  # before Linux 6.6
    assert [limit.split(":")[0] for limit in limits[1:]] == lacks
    assert userfaultfd.features_of(guest.uffd) == fds.check_uffd(guest.uffd).features
    assert Feature.EVENT_REMOVE in fds.check_uffd(guest.uffd).features


@pytest.mark.parametrize(
    ("device", "message"),
    [("/dev/userfaultfd", "join the group vmmswap"), ("/dev/nonexistent", "does not exist")],
)
def test_advice_where_userfaultfd_is_not_allowed(device, message):
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0":
        pytest.skip("vm.unprivileged_userfaultfd=1 here: nobody is refused")
    os.seteuid(65534)
    try:
        with pytest.raises(AccessDeniedError) as caught:
            open_userfaultfd(Path(device))
    finally:
        os.seteuid(0)
    assert message in caught.value.message
    assert "vm.unprivileged_userfaultfd=1" in caught.value.message
    assert "CAP_SYS_PTRACE" in caught.value.message
