# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach with a QMP socket takes the private memory that the VMM calls its guest's RAM, also later."""

from __future__ import annotations

import pytest

from tests.guests.attached import attaching
from tests.integration.test_attach_private import REASON
from tests.support.ram_block_vmm import BLOCK_BYTES, RamBlockVmm

pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

BLOCK_PAGES = BLOCK_BYTES // 4096


@pytest.fixture
def service(bus, directory):
    with attaching(bus, directory) as running:
        yield running


def enabled_pages(service, vmm):
    status = service.monitor.enable()
    assert status["State"] == "Active", service.monitor.log
    vmm.ask("check")
    return status["TotalPages"]


def test_what_it_calls_ram(service, directory):
    with RamBlockVmm(directory / "qmp.sock") as vmm:
        service.attach(vmm.pid, qmp=str(vmm.path))
        assert enabled_pages(service, vmm) == BLOCK_PAGES
        assert "taken: QEMU's RAM 'pc.ram'" in service.monitor.log
        assert "left: QEMU's '0000:00:02.0/vga.vram', which is no RAM of the guest" in service.monitor.log
        vmm.ask("plug")
        assert enabled_pages(service, vmm) == 2 * BLOCK_PAGES
        service.monitor.kill()
        service.start()  # a successor asks too, and takes no more
        vmm.ask("check")
        assert enabled_pages(service, vmm) == 2 * BLOCK_PAGES
        service.detach()
        vmm.ask("check")


def test_by_size_and_shape_where_it_prints_no_address(service, directory):
    """Both blocks have one size: neither can be left out."""
    with RamBlockVmm(directory / "qmp.sock") as vmm:
        vmm.ask("no-address")
        service.attach(vmm.pid, qmp=str(vmm.path))
        assert enabled_pages(service, vmm) == 2 * BLOCK_PAGES
        assert "QEMU says how large its RAM is, and not where (before 8.0)" in service.monitor.log
        service.detach()
        vmm.ask("check")
