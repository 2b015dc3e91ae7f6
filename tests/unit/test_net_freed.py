# SPDX-License-Identifier: GPL-2.0-or-later
"""NetFreedBytes: how it is made of the kernel's figures."""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from vmmswap.engine import TierFds
from vmmswap.monitor.operations import net_freed

PAGE = 4096
MIB = 1 << 20
OWN_BYTES = 3 * PAGE
OUT = {"tracking": True, "resident_pages": 1000, "swap_pages": 9000}


class Vm:
    """What net_freed looks at: memfds with blocks, and a record of how things were before."""

    def __init__(self) -> None:
        self._fds = {name: os.memfd_create(name) for name in ("page_map", "wake", "segments", "ram", "disk")}
        self.engine = SimpleNamespace(
            page_map_fd=self._fds["page_map"],
            wake_fd=self._fds["wake"],
            store_fd=-1,
            tier_fds=TierFds(self._fds["segments"], self._fds["ram"], self._fds["disk"], -1),
            store_file_system="ext4",
        )
        self.backing = SimpleNamespace(source_is_store=False)
        self.manifest = SimpleNamespace(resident_before=10_000, tables_before=0)
        self.processes = {0: SimpleNamespace(pid=os.getpid())}

    def fill(self, name: str, pages: int) -> None:
        os.ftruncate(self._fds[name], 64 * MIB)  # what is not written takes no room
        os.pwrite(self._fds[name], b"x" * pages * PAGE, 0)

    def net_freed_pages(self, **stats: Any) -> int:
        found = net_freed.net_freed_bytes(self, SimpleNamespace(**OUT | stats))  # type: ignore[arg-type]
        assert found % PAGE == 0
        return found // PAGE

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)


@pytest.fixture
def vm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vm]:
    monkeypatch.setattr(net_freed.own_memory, "grown_bytes", lambda: OWN_BYTES)
    made = Vm()
    yield made
    made.close()


def test_all_that_the_memory_takes_elsewhere_is_subtracted(vm: Vm) -> None:
    assert vm.net_freed_pages() == 9000 - 3
    for name, pages in (("page_map", 10), ("wake", 2), ("segments", 5), ("ram", 1024)):
        before = vm.net_freed_pages()
        vm.fill(name, pages)
        assert vm.net_freed_pages() == before - pages, name
    before = vm.net_freed_pages()
    vm.fill("disk", 100)
    assert vm.net_freed_pages() == before
    vm.engine.store_file_system = "tmpfs"
    assert vm.net_freed_pages() == before - 100


def test_zeros_count_and_a_guest_that_has_grown_hides_nothing_that_is_out(vm: Vm) -> None:
    assert vm.net_freed_pages(swap_pages=500) == 9000 - 3  # the rest was zeros
    assert vm.net_freed_pages(resident_pages=9900) == 9000 - 3
    assert vm.net_freed_pages(resident_pages=20_000) == 9000 - 3


def test_it_is_nothing_where_nothing_was_gained(vm: Vm) -> None:
    assert vm.net_freed_pages(tracking=False) == 0
    assert vm.net_freed_pages(swap_pages=2, resident_pages=9998) == 0  # it costs three pages
    vm.backing.source_is_store = True  # a snapshot's pages were never there
    assert vm.net_freed_pages() == 0


def test_page_tables_count_up_to_what_is_out_can_need(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    tables_kib = 400
    monkeypatch.setattr(net_freed, "status_of", lambda _pid: {"VmPTE": f"{tables_kib} kB"})
    assert vm.net_freed_pages() == 9000 - 3  # how many there were is not known
    vm.manifest.tables_before = 400 << 10
    assert vm.net_freed_pages() == 9000 - 3
    tables_kib = 408
    assert vm.net_freed_pages() == 9000 - 3 - 2
    tables_kib = 10_000  # the guest maps more than it did
    assert vm.net_freed_pages(swap_pages=PAGE // 8) == 9000 - 3 - 1
    vm.processes[1] = SimpleNamespace(pid=os.getpid())
    assert vm.net_freed_pages(swap_pages=PAGE // 8) == 9000 - 3 - 2
    vm.processes[1].pid = 0  # not known
    assert vm.net_freed_pages(swap_pages=PAGE // 8) == 9000 - 3 - 2


def test_the_baseline_is_taken_once(vm: Vm) -> None:
    stats = SimpleNamespace(tracking=False, resident_pages=123)
    vm.stats = lambda: stats  # type: ignore[attr-defined]
    found = net_freed.baseline(vm)  # type: ignore[arg-type]
    assert found["resident_before"] == 123
    assert found["tables_before"] > 0
    stats.tracking = True  # memory is out: what is resident now says nothing of before
    assert net_freed.baseline(vm) == {}  # type: ignore[arg-type]
