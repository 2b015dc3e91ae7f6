# SPDX-License-Identifier: GPL-2.0-or-later
"""What a peer learns of a process that it may not trace: nothing, wherever it asks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.handoff import GuestMemory, Mapper
from vmmswap.errors import AccessDeniedError, InvalidRegionError, VmmswapError
from vmmswap.handoff import checks, maps, proof
from vmmswap.handoff.messages import AddProcess, Register
from vmmswap.handoff.peer import Peer
from vmmswap.handoff.receiver import Frame
from vmmswap.handoff.region import PAGE_SIZE, Region
from vmmswap.handoff.requests import Memory
from vmmswap.linux.files import file_id
from vmmswap.linux.owned import OwnedFds

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the monitor does")

UID = 65534
# Three pages: the first has contents, the second never had any; nothing is mapped where the third was.
ROOTS = """
import ctypes, mmap, sys
memory = mmap.mmap(-1, 3 * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[0] = 1
addr = ctypes.addressof(ctypes.c_char.from_buffer(memory))
ctypes.CDLL(None).munmap(ctypes.c_void_p(addr + 2 * mmap.PAGESIZE), mmap.PAGESIZE)
print(addr, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def guest() -> Iterator[GuestMemory]:
    with GuestMemory() as memory:
        yield memory


@pytest.fixture
def roots() -> Iterator[tuple[int, int]]:
    """The pid of a process of root's, and the address of its pages."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", ROOTS], **pipes) as process:
        assert process.stdout
        yield process.pid, int(process.stdout.readline())
        process.kill()


def frame(peer_pid: int, *fds: int) -> Frame:
    """A message of this process, or of the one given, that a user has sent."""
    own = OwnedFds(os.dup(fd) for fd in fds)
    pidfd = OwnedFds([os.pidfd_open(peer_pid)])
    return Frame(b"", own, pidfd, Peer(pidfd[0], peer_pid, UID, UID))


def added(guest: GuestMemory, pid: int, addr: int, dummy_page: int | None) -> VmmswapError | None:
    """What is answered to add-process of that process, with a userfaultfd of the peer's own."""
    memory = Memory(os.getpid(), (guest.region,), (file_id(guest.memfd),))
    message = AddProcess((Region(addr, PAGE_SIZE, 0, 0),), dummy_page)
    guest.renew_uffd()
    with OwnedFds([os.pidfd_open(pid)]) as pidfd, frame(os.getpid(), guest.uffd, pidfd[0]) as sent:
        try:
            checks.add_process(message, sent, memory, None).fds.close()
        except VmmswapError as error:
            return error
    return None


def test_a_foreign_process_is_not_looked_at(
    guest: GuestMemory, roots: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer's own dummy page lies where it likes: at the same addresses as what it is curious about."""

    def looked(pid: int) -> list[maps.Mapping]:
        raise AssertionError(f"the maps of {pid} were read")

    monkeypatch.setattr(maps, "read_maps", looked)
    pid, addr = roots
    own = guest.dummy.addr
    answers = [added(guest, pid, addr + page * PAGE_SIZE, None) for page in range(3)]
    answers += [added(guest, pid, addr + page * PAGE_SIZE, own) for page in range(3)]
    assert {type(answer) for answer in answers} == {AccessDeniedError}
    assert len({str(answer) for answer in answers}) == 1, answers


@pytest.fixture(params=["by its page map", "by its page tables"])
def asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How to tell what a process has on RAM: the unit's sandbox forbids another user's page map."""
    if request.param == "by its page tables":
        monkeypatch.setattr(proof, "_is_populated", lambda _pid, _addr: None)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("page", [0, 1, 2])
def test_the_proof_tells_nothing_either(
    guest: GuestMemory, roots: tuple[int, int], monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """Whatever root's process has at the address of the peer's dummy page: full, empty or nothing."""
    pid, addr = roots
    steps = []
    start = checks.owns.__globals__["probe"]

    def probe(uffd, of_pid, _, field, *, read_addr):
        steps.append(read_addr)
        return start(uffd, of_pid, guest.dummy.addr, field, read_addr=read_addr)

    monkeypatch.setitem(checks.owns.__globals__, "probe", probe)
    answer = added(guest, pid, addr, addr + page * PAGE_SIZE)
    assert isinstance(answer, AccessDeniedError)
    assert "nothing shows that the userfaultfd is its own: send its dummy_page" in str(answer)
    assert len(steps) == 1  # each takes the same steps
    assert steps[0] != addr  # and what has contents is not read


@pytest.mark.usefixtures("asked")
def test_a_process_that_gave_its_userfaultfd_away_is_added(guest: GuestMemory) -> None:
    """Another user's back-end."""
    memory = Memory(os.getpid(), (guest.region,), (file_id(guest.memfd),))
    with Mapper(guest.memfd, guest.size_bytes) as mapper:
        region = Region(mapper.addr, guest.size_bytes, 0, 0)
        message = AddProcess((region,), mapper.dummy_page)
        with frame(os.getpid(), mapper.uffd, mapper.pidfd) as sent:
            request = checks.add_process(message, sent, memory, None)
        with request.fds:
            assert request.process.is_proven


def test_a_sender_that_runs_a_set_uid_program_by_now(guest: GuestMemory, roots: tuple[int, int]) -> None:
    """The maps are another program's then: the peer is told neither what is there nor whether anything is."""
    pid, addr = roots
    answers = set()
    for page in range(3):
        message = Register((Region(addr + page * PAGE_SIZE, PAGE_SIZE, 0, 0),), 1)
        guest.renew_uffd()
        with frame(pid, guest.uffd, guest.memfd) as sent, pytest.raises(InvalidRegionError) as answer:
            checks.register(message, sent, -1)
        answers.add(answer.value.message)
    assert len(answers) == 1
    assert f"{addr:x}" not in answers.pop()


def test_the_peers_own_mistakes_are_still_named(guest: GuestMemory) -> None:
    message = Register((Region(0x10000, PAGE_SIZE, 0, 0),), 1)
    with frame(os.getpid(), guest.uffd, guest.memfd) as sent:
        root = Frame(sent.data, sent.fds, sent.pidfd, Peer(sent.peer.pidfd, os.getpid(), 0, 0))
        with pytest.raises(
            InvalidRegionError, match=r"regions\[0\].base_host_virt_addr: 0x10000 is not mapped"
        ):
            checks.register(message, root, -1)
