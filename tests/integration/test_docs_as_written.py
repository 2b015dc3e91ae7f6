# SPDX-License-Identifier: GPL-2.0-or-later
"""What the documents tell an operator to type, typed as it stands, where vmmswap is installed as they say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import doc_runner, documents, first_hour, installation
from tests.support.doc_runner import Command
from tests.support.machine import Machine
from tests.support.service import Service

BUILDER = "builder"
SOURCE = f"/home/{BUILDER}/vmmswap"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Built by an ordinary user and copied by root, both as README has it, without network."""
    if reason := Machine.missing():
        pytest.skip(reason)
    copy = tmp_path_factory.mktemp("source")
    installation.copy_tree(copy)
    if lacking := installation.missing_dependencies(copy):
        pytest.skip(f"needs the distribution's packages of {', '.join(lacking)}")
    with Machine(binds={installation.INSIDE: str(copy)}) as machine:
        machine.sh(f"useradd --create-home {BUILDER} && cp -r {installation.INSIDE} {SOURCE}")
        machine.sh(f"chown -R {BUILDER} {SOURCE}")
        text = documents.section(documents.read("README.md"), "## Install it")
        build, install = doc_runner.indented(text)[:2]
        assert (build.line, install.line) == ("make", "make install")
        machine.sh(f"cd {SOURCE} && {build.line} 2>&1", user=BUILDER, timeout_s=600)
        before = snapshot(machine)
        machine.sh(f"cd {SOURCE} && {install.line} 2>&1", timeout_s=600)
        assert snapshot(machine) == before
        yield Service(machine)


def snapshot(machine: Machine) -> str:
    """All files of the source tree, with owner and time. What pip or a compiler does would show."""
    return machine.sh(f"find {SOURCE} -type f -printf '%p %u %T@\\n' | sort").stdout


def test_the_first_hour(host: Service) -> None:
    def check(command: Command) -> None:
        if command.line.startswith("vmmswapctl enable "):
            status = host.status(command.line.split()[2])
            assert status["State"] == "Active", status
            assert status["ResidentPages"] < status["TotalPages"] / 10, status
            assert status["TotalPages"] * status["PageSize"] == 256 << 20

    first_hour.run(host.machine, check)
