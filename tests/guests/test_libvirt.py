# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain of a real libvirt, and all that this sets by itself: private memory, a sandbox, a user for QEMU.

It is booted for `make test-libvirt`, and not in CI, whose time is used up.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests import qemu
from tests.guests.console import Console
from tests.support import installation, service
from tests.support.machine import Machine, MachineError
from tests.support.service import Service

PACKAGES = installation.ROOT / "build/libvirt"
HOME = "/var/lib/libvirt/guest"
SERIAL = f"{HOME}/serial.sock"
MEMORY_MIB = 384
BOOT_S = 300.0

# As virt-install writes it, less what this guest has no driver for. Nothing is said of memory but its size.
DOMAIN = f"""
<domain type='qemu'>
  <name>web</name>
  <memory unit='MiB'>{MEMORY_MIB}</memory>
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{HOME}/vmlinuz</kernel>
    <initrd>{HOME}/initrd.gz</initrd>
    <cmdline>{qemu.KERNEL_OPTIONS}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <on_poweroff>destroy</on_poweroff>
  <devices>
    <serial type='unix'><source mode='bind' path='{SERIAL}'/></serial>
    <memballoon model='virtio'/>
  </devices>
</domain>
"""


def missing() -> str:
    if reason := qemu.missing() or Machine.missing() or qemu.cannot_move() or qemu.prepared():
        return reason
    made = subprocess.run(
        [str(Path(__file__).with_name("prepare-libvirt"))], capture_output=True, text=True, check=False
    )
    return "" if made.returncode == 0 else f"tests/guests/prepare-libvirt: {made.stderr.strip()[-300:]}"


pytestmark = [
    pytest.mark.skipif(not os.environ.get("LIBVIRT"), reason="LIBVIRT=1 asks for it (make test-libvirt)"),
    pytest.mark.slow,
]


class Host(Service):
    """The installed service, and libvirt."""

    def virsh(self, *arguments: str) -> str:
        return self.machine.run("virsh", "--connect", "qemu:///system", *arguments, timeout_s=300).stdout

    def ctl(self, *arguments: str) -> str:
        return self.machine.run("vmmswapctl", *arguments, timeout_s=300).stdout

    @property
    def qemu_pid(self) -> int:
        """In the machine's numbering."""
        return int(self.machine.path("/run/libvirt/qemu/web.pid").read_text())

    def of_qemu(self, what: str) -> Path:
        return self.machine.path(f"/proc/{self.qemu_pid}/{what}")

    def status_of_qemu(self, key: str) -> str:
        lines = self.of_qemu("status").read_text().splitlines()
        return next(line.split(maxsplit=1)[1] for line in lines if line.startswith(f"{key}:"))

    def resident_bytes(self) -> int:
        """Guest memory that is allocated, by the kernel's count."""
        mappings = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", self.of_qemu("smaps").read_text())
        size = re.compile(rf"(?m)^Size: +{MEMORY_MIB << 10} kB")
        found = (re.search(r"(?m)^Anonymous: +(\d+)", item) for item in mappings if size.search(item))
        return sum(int(item[1]) << 10 for item in found if item)

    def traces(self) -> tuple[list[str], list[str]]:
        """What an attach may leave: threads and fds."""
        threads = sorted((task / "comm").read_text() for task in self.of_qemu("task").iterdir())
        fds = self.machine.sh(f"readlink /proc/{self.qemu_pid}/fd/*").stdout.split("\n")
        return threads, sorted(fd for fd in fds if "mailbox" in fd or "userfaultfd" in fd)

    def serial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.machine.path(SERIAL)))
        return sock

    def attach(self) -> None:
        self.ctl("attach", "web", "--libvirt", "web")
        assert self.status("web")["Origin"] == "attach"

    def out(self) -> None:
        status = self.swap_out("web")
        assert (status["PinCheck"], status["TotalPages"]) == ("move", MEMORY_MIB * 256)


@pytest.fixture(scope="module")
def host(tree: Path) -> Iterator[Host]:
    if reason := missing():
        pytest.skip(reason)
    binds = {installation.INSIDE: str(tree), "/srv/libvirt": str(PACKAGES)}
    with Machine(binds=binds) as machine:
        service.install(machine)
        install_libvirt(machine)
        yield Host(machine)


def install_libvirt(machine: Machine) -> None:
    """As `apt install` does; policy-rc.d, where containers have it, starts nothing."""
    machine.sh(
        "DEBIAN_FRONTEND=noninteractive dpkg --install --force-confold /srv/libvirt/*.deb 2>&1", timeout_s=600
    )
    machine.run("systemctl", "start", "virtlogd.socket", "libvirtd.socket")
    kernel = qemu.KERNEL_DIR
    machine.sh(f"mkdir {HOME} && cp {kernel}/vmlinuz {kernel}/initrd.gz {HOME} && chown libvirt-qemu {HOME}")
    machine.path(f"{HOME}/web.xml").write_text(DOMAIN)


@pytest.fixture(scope="module")
def console(host: Host) -> Iterator[Console]:
    """The domain's guest has booted, and has something in its memory."""
    host.virsh("define", f"{HOME}/web.xml")
    host.virsh("start", "web")
    with Console(host.serial(), lambda: host.virsh("list", "--all")) as console:
        console.read_to(qemu.READY, BOOT_S)
        console.order("fill 96")
        console.order("scribble on")
        yield console


def check_guest(console: Console) -> None:
    assert console.order("check").wrong == 0
    done = console.order("replay")
    assert (done.wrong, done.writes > 0) == (0, True)
    console.order("scribble on")


def test_libvirt_has_set_up_what_is_tested(host: Host, console: Console) -> None:  # noqa: ARG001
    """Another user, and the seccomp filters of its sandbox."""
    line = host.of_qemu("cmdline").read_bytes().decode().replace("\0", " ")
    assert "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny" in line
    assert "memory-backend-ram" in line
    assert host.status_of_qemu("Seccomp") == "2"
    assert host.status_of_qemu("Uid").split()[0] != "0"


def test_out_and_in_while_it_runs(host: Host, console: Console) -> None:
    before = host.traces()
    host.attach()
    threads, _ = host.traces()
    assert threads == sorted([*before[0], "vmmswap\n"])
    resident_bytes = host.resident_bytes()
    assert resident_bytes > 0
    host.virsh("suspend", "web")  # or the guest brings some back
    host.out()
    assert host.resident_bytes() < resident_bytes / 4
    host.virsh("resume", "web")
    check_guest(console)
    for _ in range(2):
        host.out()
        check_guest(console)

    host.out()
    host.virsh("setmem", "web", "256M", "--live")
    host.machine.wait_for("the balloon", lambda: balloon_mib(host) == 256 or None)
    host.out()
    host.virsh("setmem", "web", f"{MEMORY_MIB}M", "--live")
    host.machine.wait_for("the balloon", lambda: balloon_mib(host) == MEMORY_MIB or None)
    check_guest(console)

    host.out()
    pid = host.pid("web")
    host.machine.run("systemctl", "kill", "--signal=KILL", "vmmswap@web.service")
    check_guest(console)
    host.machine.wait_for("a successor", lambda: host.pid("web") not in (0, pid) or None)
    host.wait_state("web", "Active")

    host.out()
    assert host.swap_in("web")["SwapPages"] == 0
    check_guest(console)
    host.out()
    host.ctl("detach", "web")
    assert host.traces() == before
    check_guest(console)


def balloon_mib(host: Host) -> int:
    lines = host.virsh("dommemstat", "web").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("actual"))


def test_saved_while_its_memory_is_out(host: Host, console: Console) -> None:
    """QEMU writes all of its memory to a file, and ends; another one goes on from there."""
    host.attach()
    host.out()
    host.virsh("save", "web", f"{HOME}/web.save")
    host.wait_unit("web", "inactive")
    host.virsh("restore", f"{HOME}/web.save")
    console.connect_again(host.serial())
    check_guest(console)
    host.attach()
    host.out()
    check_guest(console)


def test_powered_off_while_its_memory_is_out(host: Host, console: Console) -> None:
    host.out()
    console.send("off")
    host.machine.wait_for("the domain's end", lambda: "shut off" in host.virsh("domstate", "web") or None)
    host.wait_unit("web", "inactive")
    assert "the VMM has ended: all is freed" in host.log("web")
    with pytest.raises(MachineError, match="no libvirt domain web runs here"):
        host.ctl("attach", "web", "--libvirt", "web")
