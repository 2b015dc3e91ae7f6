# SPDX-License-Identifier: GPL-2.0-or-later
"""The drain by QMP: this process is the VMM, with its memory, its userfaultfd and its QMP server."""

import asyncio
import ctypes
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.bus import missing
from tests.support.guest_memory import map_guest_memory
from tests.support.monitor import DEADLINE_S, PROGRAM, Monitor
from tests.support.notify import ServiceManager
from tests.support.qmp_server import QmpServer
from vmmswap.handoff import client
from vmmswap.monitor.qmp import Qmp, QmpError, QmpRefusedError

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing")

PAGE = 4096
PAGES = 256
HANDSHAKE = ["qmp_capabilities"]
DRAIN = ["query-status", "stop", "cont"]


@pytest.fixture
def undo():
    with ExitStack() as stack:
        yield stack


class Vmm:
    """Guest memory in a memfd, its contents known."""

    def __init__(self):
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, PAGES * PAGE)
        self.map = map_guest_memory(self.fd, PAGES * PAGE)
        self._view = ctypes.c_char.from_buffer(self.map)
        self.addr = ctypes.addressof(self._view)
        self.uffd = client.open_userfaultfd()
        self.dummy = client.DummyPage()
        self.connection = None
        self.write(os.urandom(PAGES * PAGE))

    def write(self, data, page=0):
        self.map[page * PAGE : page * PAGE + len(data)] = data
        self.expected = self.map[:]

    def hand_over(self, monitor, **more):
        self.monitor = monitor
        self.connection = client.VmmClient.connect(monitor.socket)
        region = client.Region(self.addr, PAGES * PAGE, 0, 0)
        self.connection.register([region], [self.fd], self.uffd, dummy_page=self.dummy.addr, **more)

    @property
    def resident_pages(self):
        return os.fstat(self.fd).st_blocks * 512 // PAGE

    def protected_pages(self):
        """As the kernel's page tables say: bit 57 of /proc/PID/pagemap."""
        with Path("/proc/self/pagemap").open("rb") as pagemap:
            pagemap.seek(self.addr // PAGE * 8)
            return sum(entry >> 57 & 1 for (entry,) in struct.iter_unpack("=Q", pagemap.read(PAGES * 8)))

    def check(self):
        assert self.map[:] == self.expected

    def close(self):
        """Only once the monitor has let the memory go: it does so when the connection ends."""
        if self.connection is not None:
            self.connection.close()
            self.monitor.wait_exit()
        del self._view
        self.map.close()
        self.dummy.close()
        os.close(self.uffd)
        os.close(self.fd)


def config(directory, *lines):
    path = directory / "vmmswap.conf"
    path.write_text("\n".join(["[Swap]", *(lines or ["PinCheck=qmp"])]) + "\n")
    return "--config", str(path)


def set_up(undo, bus, directory, *lines, state="running"):
    """Monitor, QMP server and VMM, which has handed its memory over."""
    server = undo.enter_context(QmpServer(directory / "qmp", state=state))
    monitor = undo.enter_context(Monitor("web", bus, directory, *config(directory, *lines)))
    vmm = Vmm()
    undo.callback(vmm.close)
    vmm.hand_over(monitor, qmp=str(server.path))
    return monitor, server, vmm


def hang(undo, server):
    """Let `stop` wait for the event that is returned, as with a disk that hangs."""
    recovered = threading.Event()
    undo.callback(recovered.set)  # before the server is joined
    server.on_stop = lambda: recovered.wait(DEADLINE_S)
    return recovered


def until(condition, monitor, what):
    monitor.until(condition, what)


def test_stop_comes_after_the_protection_and_before_anything_leaves(undo, bus, directory):
    monitor, server, vmm = set_up(undo, bus, directory)
    seen = {}

    def transfer_ends():
        seen.update(monitor.status(), resident=vmm.resident_pages, protected=vmm.protected_pages())
        vmm.write(b"from the disk", page=7)

    server.on_stop = transfer_ends
    status = monitor.enable()
    assert server.commands == HANDSHAKE + DRAIN
    assert (seen["Operation"], seen["PinCheck"], seen["SwapPages"]) == ("swap-out", "qmp", 0)
    assert (seen["resident"], seen["protected"]) == (PAGES, PAGES)
    assert (status["State"], status["PinCheck"], status["Error"]) == ("Active", "qmp", "")
    assert (status["SwapPages"], status["ResidentPages"]) == (PAGES - 1, 1), "what was written to stays"
    assert status["PauseUs"] > 0
    assert "drained by QMP" in monitor.log
    vmm.check()
    assert monitor.enable()["State"] == "Active"
    assert server.commands == (HANDSHAKE + DRAIN) * 2, "the session was closed in between"
    assert monitor.disable()["State"] == "Ready"
    vmm.check()


def test_each_pass_is_drained(undo, bus, directory):
    monitor, server, vmm = set_up(undo, bus, directory, "PinCheck=qmp", "MaxPasses=2")
    server.on_stop = lambda: vmm.write(b"x")
    status = monitor.enable()
    assert status["State"] == "Active"
    assert server.commands == HANDSHAKE + DRAIN * 2
    vmm.check()


def test_trim_is_drained_too(undo, bus, directory):
    monitor, server, vmm = set_up(undo, bus, directory)
    monitor.enable()
    vmm.write(b"x", page=3)
    server.commands.clear()
    monitor.call("Trim")
    assert monitor.settled()["State"] == "Active"
    assert server.commands == HANDSHAKE + DRAIN
    vmm.check()


def test_a_vm_that_was_paused_stays_paused(undo, bus, directory):
    monitor, server, vmm = set_up(undo, bus, directory, state="paused")
    assert monitor.enable()["State"] == "Active"
    assert server.commands == [*HANDSHAKE, "query-status", "stop"]
    assert server.state == "paused"
    vmm.check()


def test_a_vm_that_migrates_in_is_left_alone(undo, bus, directory):
    monitor, server, vmm = set_up(undo, bus, directory, state="inmigrate")
    status = monitor.enable()
    assert status["State"] == "Failed"
    assert "migrated in" in status["Error"]
    assert status["ErrorName"] == "org.vmmswap.Error.NotSupported"
    assert server.commands == [*HANDSHAKE, "query-status"]
    assert vmm.resident_pages == PAGES
    vmm.check()


def test_a_hung_disk_fails_the_swap_out_and_the_vm_goes_on(undo, bus, directory):
    monitor, server, vmm = set_up(undo, bus, directory, "PinCheck=qmp", "FreezeTimeoutSec=2")
    recovered = hang(undo, server)
    status = monitor.enable()
    assert status["State"] == "Failed"
    assert "QMP stop is not answered within 2 s" in status["Error"]
    assert "failed" in monitor.log
    assert vmm.resident_pages == PAGES
    vmm.write(b"a page that is not protected any more")
    recovered.set()
    until(lambda: server.state == "running" and "cont" in server.commands, monitor, "the VM to go on")
    server.on_stop = lambda: None
    assert monitor.enable()["State"] == "Active"
    vmm.check()


@pytest.mark.parametrize("command", ["stop", "cont"])
def test_a_refusal_is_the_reason(undo, bus, directory, command):
    monitor, server, vmm = set_up(undo, bus, directory)
    server.refuses[command] = "out of order"
    status = monitor.enable()
    assert status["State"] == "Failed"
    assert f"QMP {command}: 'out of order'" in status["Error"]
    until(lambda: server.commands == HANDSHAKE + DRAIN, monitor, "cont, which is on its way by now")
    assert vmm.resident_pages == PAGES
    server.refuses.clear()
    assert monitor.enable()["State"] == "Active"
    vmm.check()


def test_disable_during_the_drain_lets_the_vm_go_on(undo, bus, directory):
    monitor, server, vmm = set_up(undo, bus, directory)
    recovered = hang(undo, server)
    monitor.call("Enable")
    until(lambda: "stop" in server.commands, monitor, "stop")
    monitor.call("Disable")
    status = monitor.settled()
    assert (status["State"], status["Error"]) == ("Ready", "")
    recovered.set()
    until(lambda: server.commands[-1] == "cont", monitor, "cont")
    vmm.check()


def test_a_stopped_monitor_waits_until_the_vm_goes_on(undo, bus, directory):
    monitor, server, vmm = set_up(undo, bus, directory)
    recovered = hang(undo, server)
    monitor.call("Enable")
    until(lambda: "stop" in server.commands, monitor, "stop")
    monitor.process.send_signal(signal.SIGTERM)
    until(lambda: monitor.status()["State"] == "Ready", monitor, "all to be in")
    assert monitor.process.poll() is None
    recovered.set()
    assert monitor.wait_exit() == 0
    assert (server.commands, server.state) == (HANDSHAKE + DRAIN, "running")
    vmm.check()


def test_the_successor_of_a_monitor_that_died_lets_the_vm_go_on(undo, bus, directory):
    server = undo.enter_context(QmpServer(directory / "qmp"))
    manager = undo.enter_context(ServiceManager(directory))
    listener = undo.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(directory / "socket"))
    listener.listen()

    def start():
        program, fds = manager.program(*PROGRAM, listener=listener)
        options = {"program": program, "env": manager.environment, "listen": False, "pass_fds": fds}
        return undo.enter_context(Monitor("web", bus, directory, *config(directory), **options))

    monitor = start()
    vmm = Vmm()
    undo.callback(vmm.close)
    vmm.hand_over(monitor, qmp=str(server.path))
    recovered = hang(undo, server)
    monitor.call("Enable")
    until(lambda: "stop" in server.commands, monitor, "stop")
    monitor.kill()
    server.on_stop = lambda: None
    recovered.set()
    successor = start()
    vmm.monitor = successor
    until(lambda: successor.status()["State"] == "Active", successor, "the swap-out to be done")
    told = [command for command in server.commands if command not in HANDSHAKE]
    assert told == ["query-status", "stop", "cont", *DRAIN], "in one session or two: letting go may end first"
    assert server.state == "running"
    vmm.check()


# A VM that ends while a call is worked on


# The last of what is looked at before a swap-out waits until somebody has opened and closed the FIFO.
HELD = """
import sys
from vmmswap.monitor import main
from vmmswap.monitor.mappers import coverage
fifo, check_buffers = sys.argv.pop(1), coverage.check_buffers
def held(question):
    open(fifo).read()
    check_buffers(question)
coverage.check_buffers = held
main.main()
"""


@pytest.mark.parametrize("end", ["the VMM closes its connection", "the monitor is stopped"])
def test_a_vm_that_is_let_go_during_enable_is_no_vm(undo, bus, directory, end):
    fifo = directory / "fifo"
    os.mkfifo(fifo)
    program = (sys.executable, "-c", HELD, str(fifo))
    server = undo.enter_context(QmpServer(directory / "qmp"))
    options = (*config(directory), "--debug")
    monitor = undo.enter_context(Monitor("web", bus, directory, *options, program=program))
    vmm = Vmm()
    undo.callback(vmm.close)
    vmm.hand_over(monitor, qmp=str(server.path))
    with subprocess.Popen(monitor.call_command("Enable"), stderr=subprocess.PIPE, text=True) as call:
        with fifo.open("w"):
            if end == "the monitor is stopped":
                monitor.process.terminate()
            else:
                vmm.connection.close()
            monitor.wait_log("the VM is released")
        _, told = call.communicate()
    assert "the VM has ended" in told
    assert call.returncode
    assert monitor.wait_exit() == 0
    assert "Traceback" not in monitor.log


# Which way is taken


def test_who_has_a_better_way_is_not_drained(undo, bus, directory):
    monitor, server, vmm = set_up(undo, bus, directory, "PinCheck=auto")
    assert monitor.enable()["State"] == "Active"
    assert server.commands in ([], HANDSHAKE, HANDSHAKE + DRAIN)
    if monitor.status()["PinCheck"] in ("bpf", "collapse"):
        assert server.commands == HANDSHAKE
        monitor.enable()
        assert server.commands == HANDSHAKE, "known by now: it is not even connected to"
    vmm.check()


@pytest.mark.parametrize("lines", [("PinCheck=settle", "PinSettleMSec=1"), ("PinCheck=off",)])
def test_a_way_that_is_not_allowed_is_not_used(undo, bus, directory, lines):
    monitor, server, vmm = set_up(undo, bus, directory, *lines)
    assert monitor.enable()["State"] == "Active"
    assert (server.commands, server.clients) == ([], 0)
    vmm.check()


def test_a_frozen_vmm_could_not_answer(undo, bus, directory):
    monitor, server, vmm = set_up(undo, bus, directory, "PinCheck=qmp", "Mode=freeze")
    status = monitor.enable()
    assert status["State"] == "Failed"
    assert "cannot be ruled out" in status["Error"]
    assert (server.commands, vmm.resident_pages) == ([], PAGES)
    vmm.check()


def test_a_socket_of_another_process_is_not_used(undo, bus, directory):
    path = directory / "qmp"
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
        " print(flush=True); c, _ = s.accept(); print(len(c.recv(100)), flush=True)"
    )
    stranger = undo.enter_context(
        subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
    )
    undo.callback(stranger.kill)
    assert stranger.stdout.readline()
    monitor = undo.enter_context(Monitor("web", bus, directory, *config(directory)))
    vmm = Vmm()
    undo.callback(vmm.close)
    vmm.hand_over(monitor, qmp=str(path))
    status = monitor.enable()
    assert status["State"] == "Failed"
    assert "cannot be ruled out" in status["Error"]
    assert f"the process {stranger.pid} listens there, and the VMM is {os.getpid()}" in monitor.log
    assert stranger.stdout.readline() == b"0\n", "not a byte was sent"
    assert vmm.resident_pages == PAGES


def test_no_socket_at_all(undo, bus, directory):
    monitor = undo.enter_context(Monitor("web", bus, directory, *config(directory)))
    vmm = Vmm()
    undo.callback(vmm.close)
    vmm.hand_over(monitor, qmp=str(directory / "absent"))
    assert monitor.enable()["State"] == "Failed"
    assert "absent: No such file" in monitor.log


# The client alone


def listens(path):
    """Asked without a connection: QEMU serves one at a time, and resets what comes while it ends another."""
    sockets = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(words[3] == "00010000" and words[-1] == path for words in sockets)  # __SO_ACCEPTCON


@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="no qemu-system-x86_64")
def test_with_a_real_qemu(undo, directory):
    path = str(directory / "qmp")
    command = ["qemu-system-x86_64", "-machine", "none", "-display", "none", "-monitor", "none"]
    qemu = undo.enter_context(subprocess.Popen([*command, "-qmp", f"unix:{path},server=on,wait=off"]))
    undo.callback(qemu.kill)
    while not listens(path):
        assert qemu.poll() is None

    async def talk():
        async with asyncio.timeout(DEADLINE_S):
            qmp = await Qmp.connect(path, qemu.pid)
            states = [await qmp.run_state()]
            for order in ("stop", "cont"):
                await qmp.execute(order)
                states.append(await qmp.run_state())
            with pytest.raises(QmpRefusedError, match="no-such-command"):
                await qmp.execute("no-such-command")
            states.append(await qmp.run_state())
            qmp.close()
            with pytest.raises(QmpError, match=f"the process {qemu.pid} listens there"):
                await Qmp.connect(path, os.getpid())
        return states

    assert asyncio.run(talk()) == ["running", "paused", "running", "running"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "was closed"),
        (b"SSH-2.0\n", "not a JSON object"),
        (b'{\n  "QMP": {}\n}\n', "pretty=on"),
        (b"[" * 100_000 + b"\n", "not a JSON object"),
        (b'{"hello": 1}\n', "does not begin with a greeting"),
        (b'{"QMP": {}}\n{"id": 1, "error": 5}\n', "QMP qmp_capabilities: 5"),
        (b'{"QMP": {}}\n' + b" " * (2 << 20), "a line of more than"),
        (
            b'{"QMP": {}}\n{"id": 1, "return": 1}\n{"id": 2, "return": []}\n',
            r"answers query-status with \[\]",
        ),
    ],
)
def test_servers_that_are_none(directory, said, why):
    path = directory / "qmp"

    async def client_of(_reader, writer):
        writer.write(said)
        writer.close()

    async def talk():
        async with await asyncio.start_unix_server(client_of, path):
            qmp = await Qmp.connect(str(path), os.getpid())
            try:
                await qmp.run_state()
            finally:
                qmp.close()

    with pytest.raises(QmpError, match=why):
        asyncio.run(talk())
