# SPDX-License-Identifier: GPL-2.0-or-later
"""What the documents tell an operator to type, typed as it stands, where vmmswap is installed as they say."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import pytest

from tests.guests.qemu import wait_set_up
from tests.support import doc_runner, documents, first_hour, installation
from tests.support.doc_runner import Command, Typist
from tests.support.machine import Machine
from tests.support.service import Service

BUILDER = "builder"
SOURCE = f"/home/{BUILDER}/vmmswap"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Built by an ordinary user and copied by root, both as README has it, without network."""
    if reason := Machine.missing():
        pytest.skip(reason)
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("needs qemu-system-x86_64")
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
    if reason := first_hour.missing():
        pytest.skip(reason)

    def check(command: Command) -> None:
        if command.line.startswith("vmmswapctl enable "):
            status = host.status(command.line.split()[2])
            assert status["State"] == "Active", status
            assert status["ResidentPages"] < status["TotalPages"] / 10, status
            assert status["TotalPages"] * status["PageSize"] == 256 << 20

    first_hour.run(host.machine, check)


def start_qemu(machine: Machine) -> None:
    """One in QEMU's own sandbox, as libvirt has it, with all of its memory in use."""
    qemu = (
        "/usr/bin/qemu-system-x86_64 -name guest=web -display none -accel tcg -m 256M"
        " -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
        " -object memory-backend-memfd,id=pc.ram,size=256M,share=on,prealloc=on"
        " -machine q35,memory-backend=pc.ram -qmp unix:/run/qemu-web/qmp,server=on,wait=off"
    )
    machine.sh("id qemu-web || useradd --system qemu-web; install -d -o qemu-web /run/qemu-web")
    machine.spawn(f"exec {qemu}", unit="qemu-web.service", user="qemu-web")
    wait_set_up(machine.path("/run/qemu-web/qmp"))


class Cast:
    """The VMs that a document takes for granted: at most one at a time, named web."""

    def __init__(self, host: Service) -> None:
        self.host = host
        self.names: dict[str, str] = {"DIR": "/var/tmp"}
        self._stack = ExitStack()

    def end(self) -> None:
        self._stack.close()

    def guest(self) -> None:
        """One that hands its memory over; a new one, unless it is there already."""
        if self.host.machine.sh("vmmswapctl status web", check=False).returncode != 0:
            self.end()
            self._stack.enter_context(self.host.guest("web"))

    def new_guest(self) -> None:
        self.end()
        self.guest()

    def swapped_out(self) -> None:
        self.guest()
        self.host.swap_out("web")

    def tiered(self) -> None:
        """A new one whose memory is out, compressed on RAM."""
        self.end()
        self.host.wait_unit("web", "inactive")
        config = self.host.machine.path("/etc/vmmswap.conf.d/tiered.conf")
        config.parent.mkdir(exist_ok=True)
        config.write_text("[VM web]\nRamTierMax=100%\n")
        self.swapped_out()
        self._stack.callback(config.unlink)

    def qemu(self) -> None:
        """One that runs, and that nobody has attached to."""
        machine = self.host.machine
        self.end()
        self._stack.callback(self._end_qemu)
        start_qemu(machine)
        pid = machine.unit("qemu-web.service", "MainPID")["MainPID"]
        maps = machine.sh(f"grep /memfd: /proc/{pid}/maps").stdout
        self.names |= {"PID": pid, "START-END": maps.split()[0]}

    def _end_qemu(self) -> None:
        self.host.machine.run("systemctl", "stop", "qemu-web.service")
        self.host.wait_unit("web", "inactive")


Stage = Mapping[str, Callable[[], None]]
Instead = Mapping[str, Callable[[Typist, Command], None] | None]


def type_all(cast: Cast, document: str, before: Stage, instead: Instead) -> None:
    """Type the commands of a document. What comes before one, or is done instead, goes by how it begins.
    None: another test types it.
    """
    typist = Typist(cast.host.machine)
    for command in doc_runner.indented(documents.read(document)):
        for start, prepare in before.items():
            if command.line.startswith(start):
                prepare()
        typist.names = cast.names
        others = [action for start, action in instead.items() if command.line.startswith(start)]
        if not others:
            typist.type(command)
        elif others[0]:
            others[0](typist, command)


def until_interrupted(typist: Typist, command: Command) -> None:
    typist.type(Command(f"timeout --signal=INT 2 {command.line}; [ $? = 124 ]"))


def in_the_source_tree(typist: Typist, command: Command) -> None:
    typist.type(Command(f"cd {SOURCE} && {command.line}"))


# `make demo` and `make test` are what runs this; the others are typed by the fixture and by test_install.py.
MAKES: Instead = {"make": None, "apt-get": None}


@pytest.fixture
def cast(host: Service) -> Iterator[Cast]:
    found = Cast(host)
    yield found
    found.end()


def test_readme(cast: Cast) -> None:
    type_all(cast, "README.md", {"vmmswapctl attach": cast.qemu}, MAKES)


def test_service(cast: Cast) -> None:
    machine = cast.host.machine
    before = {
        "usermod": lambda: machine.sh("id qemu >/dev/null 2>&1 || useradd --system qemu"),
        "journalctl": cast.swapped_out,
        "vmmswapctl": cast.guest,
    }
    type_all(cast, "docs/service.md", before, {**MAKES, "systemd-analyze": in_the_source_tree})


def test_dbus(cast: Cast) -> None:
    type_all(cast, "docs/dbus.md", {"busctl": cast.guest}, {})


def test_vmmswapctl(cast: Cast) -> None:
    before = {
        **dict.fromkeys(
            ("vmmswapctl list", "vmmswapctl status", "vmmswapctl log", "vmmswapctl trace"), cast.guest
        ),
        **dict.fromkeys(
            ("vmmswapctl monitor", "vmmswapctl enable", "vmmswapctl exit", "vmmswapctl detach"), cast.guest
        ),
        "vmmswapctl wait web Active": cast.swapped_out,
        "vmmswapctl wake": cast.guest,
        "vmmswapctl flush": cast.tiered,
        "vmmswapctl prepare": cast.end,
        "vmmswapctl attach": cast.qemu,
    }
    instead: Instead = {
        "vmmswapctl monitor": until_interrupted,
        "vmmswapctl demo": None,  # by test_ctl_demo.py
    }
    type_all(cast, "docs/vmmswapctl.md", before, instead)


def test_attach(cast: Cast) -> None:
    machine = cast.host.machine

    def is_there() -> bool:
        return machine.sh("vmmswapctl status web", check=False).returncode == 0

    def by_hand(typist: Typist, command: Command) -> None:
        line = typist.filled_in(command)
        with machine.popen(f"exec {line} 2>&1", stdout=subprocess.PIPE) as monitor:
            machine.wait_for(f"{line} to serve", lambda: is_there() or monitor.poll() is not None)
            machine.sh("vmmswapctl enable web && vmmswapctl detach web")
            output, _ = monitor.communicate()
        assert monitor.returncode == 0, output

    before = {"vmmswapctl attach": cast.qemu, "vmmswap-monitor": cast.qemu, "busctl": cast.qemu}
    type_all(cast, "docs/attach.md", before, {"vmmswap-monitor": by_hand})


GDBUS_PREPARE = (
    "gdbus call --system --dest org.vmmswap --object-path /org/vmmswap --method org.vmmswap.Host.Prepare"
)


def test_concierge(cast: Cast) -> None:
    machine = cast.host.machine

    def example(typist: Typist, command: Command) -> None:
        del typist
        with machine.popen(
            f"exec {command.line}", unit="concierge.service", stdout=subprocess.PIPE
        ) as daemon:
            assert daemon.stdout
            assert daemon.stdout.readline().startswith("prepared /run/vmmswap/web.sock")
            cast.guest()
            machine.sh("touch /run/web.idle")
            cast.host.wait_state("web", "Active")
            machine.run("systemctl", "stop", "concierge.service")
        cast.end()

    states = []

    def ordered(typist: Typist, command: Command) -> None:
        typist.type(command)
        if " Prepare s " in command.line or ".Prepare " in command.line:
            cast.guest()
        if command.line.endswith(("Enable", "Disable")):
            states.append(
                cast.host.wait_state("web", "Active" if command.line.endswith("Enable") else "Ready")
            )

    instead: Instead = {
        "/usr/share/doc/vmmswap/docs/examples/concierge.py": example,
        "busctl monitor": until_interrupted,
        "gdbus monitor": until_interrupted,
        "busctl": ordered,
        "gdbus": ordered,
    }
    type_all(
        cast,
        "docs/concierge.md",
        {GDBUS_PREPARE: cast.end},
        instead,
    )
    assert [state["State"] for state in states] == ["Active", "Ready"] * 2


def test_the_transcript_is_of_what_the_first_hour_says() -> None:
    """If not: `make transcript`."""
    steps = doc_runner.fenced(first_hour.DOCUMENT.read_text())
    typed = [step.line if isinstance(step, Command) else f"editor {step.path}" for step in steps]
    shown = re.findall(r"^# (?!The first hour)(.*)$", documents.read("docs/transcript.md"), re.MULTILINE)
    assert shown == typed


def test_no_document_is_left_out() -> None:
    typed = {
        "README.md",
        *(f"docs/{name}.md" for name in ("attach", "concierge", "dbus", "service", "vmmswapctl")),
    }
    pages = [documents.ROOT / "README.md", *(documents.ROOT / "docs").glob("*.md")]
    found = {str(path.relative_to(documents.ROOT)) for path in pages if doc_runner.indented(path.read_text())}
    assert found == typed
    with_blocks = {path.name for path in pages if doc_runner.fenced(path.read_text())}
    assert with_blocks == {"first-hour.md"}


def options_of(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


@pytest.mark.parametrize("program", ["vmmswapctl.1", "vmmswap-monitor.8", "vmmswapd.8"])
def test_manual_pages_and_help_agree(host: Service, program: str) -> None:
    name, volume = program.rsplit(".", 1)
    roff = host.machine.path(f"/usr/share/man/man{volume}/{program}").read_text()
    page = re.sub(r"\\f[BR]", "", roff).replace("\\-", "-").replace("\\(aq", "'").replace("\\e", "\\")
    helps = [host.machine.sh(f"{name} --help").stdout]
    if name == "vmmswapctl":
        verbs = re.findall(
            r"^    ([a-z]+)", helps[0].partition("verbs:")[2].partition("exit status")[0], re.MULTILINE
        )
        assert len(verbs) > 10
        assert re.findall(r'^\.SS "(.*)"$', page, re.MULTILINE) == verbs
        loop = f"for verb in {' '.join(verbs)}; do vmmswapctl $verb --help || exit 1; done"
        helps.append(host.machine.sh(loop).stdout)
        for example in re.findall(r"^example:\n  (.*)$", helps[1], re.MULTILINE):
            assert f"  {example}\n" in page
    assert options_of(page) == options_of("".join(helps))


@pytest.mark.parametrize("user", ["root", "in-group", "nobody"])
def test_no_program_answers_with_a_traceback(cast: Cast, user: str) -> None:
    """Every verb, with every bus, file and stream that can be out of reach."""
    machine = cast.host.machine
    machine.sh("id in-group >/dev/null 2>&1 || useradd --system --groups vmmswap in-group")
    script = documents.read("tests/support/every_verb.py")
    cast.guest()
    done = machine.sh("exec /usr/bin/python3 -I -", user=user, stdin=script, timeout_s=900)
    assert done.stdout == ""
