# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmmswapctl attach NAME --libvirt DOMAIN`: the domain's QEMU, and no other process."""

import subprocess

import pytest

from vmmswap.ctl.failure import CtlError
from vmmswap.ctl.libvirt import pid_of_domain


@pytest.fixture
def started():
    """Start a process with this command line, as libvirt starts QEMU."""
    running = []

    def start(*words):
        shell = ["sh", "-c", "echo started; read line", *words]
        process = subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"started\n"
        running.append(process)
        return process.pid

    yield start
    for process in running:
        process.communicate(b"\n")


def noted(directory, domain, pid):
    (directory / f"{domain}.pid").write_text(str(pid))
    return (directory,)


@pytest.mark.parametrize(
    ("domain", "name"),
    [("web", "guest=web,debug-threads=on"), ("web", "web"), ("a,b", "guest=a,,b,debug-threads=on")],
)
def test_its_qemu(started, tmp_path, domain, name):
    pid = started("-name", name, "-S")
    assert pid_of_domain(domain, noted(tmp_path, domain, pid)) == pid


@pytest.mark.parametrize("name", ["guest=webs,debug-threads=on", "guest=other", "other,web"])
def test_another_process_that_has_its_number_now(started, tmp_path, name):
    directories = noted(tmp_path, "web", started("-name", name, "web"))
    with pytest.raises(CtlError, match="no libvirt domain web runs here"):
        pid_of_domain("web", directories)


@pytest.mark.parametrize("text", ["", "x", "4194304"])
def test_none(tmp_path, text):
    with pytest.raises(CtlError, match="virsh list"):
        pid_of_domain("web", noted(tmp_path, "web", text))


@pytest.mark.parametrize("domain", ["", "..", "../../etc/x"])
def test_no_name(domain):
    with pytest.raises(CtlError, match="no name of a libvirt domain"):
        pid_of_domain(domain)
