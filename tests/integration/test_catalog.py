# SPDX-License-Identifier: GPL-2.0-or-later
"""`journalctl -x` explains entries that an installed vmmswap has really written."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import installation, service
from tests.support.machine import Machine
from tests.support.service import Service
from vmmswap import message_ids


@pytest.fixture(scope="module")
def host(tree: Path) -> Iterator[Service]:
    if reason := Machine.missing():
        pytest.skip(reason)
    with Machine(binds={installation.INSIDE: str(tree)}) as machine:
        yield service.install(machine)


def explained(host: Service, name: str, identifier: str) -> str:
    """The entries of one VM and kind as people see them, with their explanations."""
    host.machine.run("journalctl", "--sync")
    match = (f"VMMSWAP_VM={name}", f"MESSAGE_ID={identifier}")
    return host.machine.run("journalctl", "--catalog", "--no-pager", *match).stdout


def test_an_entry_is_explained_with_its_own_values(host: Service) -> None:
    with host.guest("1a.b-c"):
        pages = host.swap_out("1a.b-c")["SwapPages"]
        host.machine.run("systemctl", "restart", "vmmswap@1a.b-c.service")
        host.wait_state("1a.b-c", "Active")
    out = explained(host, "1a.b-c", message_ids.OPERATION_FINISHED)
    assert "Subject: An operation on a virtual machine's memory has ended" in out
    assert "The operation swap-out of the virtual machine 1a.b-c has ended after\n" in out
    assert f"holds\n░░ {pages}." in out
    back = explained(host, "1a.b-c", message_ids.MONITOR_RESTARTED)
    assert "journalctl --unit=vmmswap@1a.b-c.service" in back


@pytest.mark.parametrize(
    "identifier",
    [
        message_ids.OPERATION_STARTED,
        message_ids.VM_REGISTERED,
        message_ids.VM_GONE,
        message_ids.TRACE_HEADER,
        message_ids.TRACE_BATCH,
    ],
)
def test_no_value_that_an_explanation_needs_is_missing(host: Service, identifier: str) -> None:
    if not host.machine.journal(VMMSWAP_VM="whole", MESSAGE_ID=identifier):
        with host.guest("whole") as guest:
            host.manager("whole", "StartPageFaultLogging")
            host.swap_out("whole")
            assert guest.verify().wrong_bytes == 0
            host.manager("whole", "StopPageFaultLogging")
    text = explained(host, "whole", identifier)
    assert "Defined-By: vmmswap" in text
    assert "@VMMSWAP_" not in text


def test_the_catalog_lists_all(host: Service) -> None:
    listed = host.machine.run("journalctl", "--list-catalog").stdout
    assert {line.split()[0] for line in listed.splitlines() if " vmmswap: " in line} == set(
        message_ids.ALL.values()
    )
