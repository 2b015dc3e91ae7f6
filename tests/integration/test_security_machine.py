# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may do what: attacks as real users of a booted machine, on vmmswap as it is installed.

alice and bob own VMs and are in the group vmmswap, eve is in no group; root is the administrator.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import installation
from tests.support.attach import SOURCE
from tests.support.foreign_back_end import bytes_of_guest
from tests.support.guest import GuestError
from tests.support.machine import Machine
from tests.support.programs import built
from tests.support.service import GuestInside, Service
from vmmswap.message_ids import ACCESS_DENIED
from vmmswap.names import HOST_INTERFACE, HOST_PATH, MANAGER_INTERFACE, object_path_of

HOST = ("org.vmmswap", HOST_PATH, HOST_INTERFACE)
SUPPORT = Path(__file__).parents[1] / "support"
HOSTILE = "/usr/local/lib/hostile.py"
BACK_END = "/usr/local/lib/foreign_back_end.py"
RULES = "/etc/polkit-1/rules.d/10-vmmswap-test.rules"
CONFIG = "/etc/vmmswap.conf.d/security.conf"
FIRECRACKERS = '[{"base_host_virt_addr":4096,"size":4096,"offset":0,"page_size":4096}]'
REGISTER = '{"vmmswap":1,"type":"register","regions":[]}\n'
# Mallory may attach, and nothing else; prepare and attach, that is, under names that are nobody's.
MAY_ATTACH = """
polkit.addRule(function(action, subject) {
    if (action.id == "org.vmmswap.attach" && subject.user == "mallory") return polkit.Result.YES;
});
"""


class Host(Service):
    """The installed service with its users."""

    def hostile(self, user: str, *arguments: str) -> str:
        """What the hostile program prints as this user."""
        return self.machine.sh(hostile_command(*arguments), user=user).stdout

    def host(self, user: str, member: str, *arguments: str) -> str:
        """Call org.vmmswap.Host: what dbus-send prints, "" or the error's name and text."""
        return self.send(user, HOST_PATH, f"{HOST_INTERFACE}.{member}", *arguments)

    def manage(self, user: str, name: str, member: str) -> str:
        """Call the VM through vmmswapd: "" or the error."""
        return self.send(user, object_path_of(name), f"{MANAGER_INTERFACE}.{member}")

    def send(self, user: str, path: str, member: str, *arguments: str) -> str:
        command = ["dbus-send", "--system", "--print-reply", "--reply-timeout=60000", "--dest=org.vmmswap"]
        done = self.machine.sh(shlex.join([*command, path, member, *arguments]), user=user, check=False)
        return done.stderr.strip().removeprefix("Error ") if done.returncode else ""

    def configure(self, text: str) -> None:
        self.machine.path(CONFIG).parent.mkdir(exist_ok=True)
        self.machine.path(CONFIG).write_text(text)

    def socket(self, name: str) -> str:
        return self.machine.sh(f"stat -c '%U %G %a' /run/vmmswap/{name}.sock").stdout.strip()

    def end(self, name: str) -> None:
        """The monitor and the socket of a name that a test has used."""
        self.machine.run("systemctl", "stop", f"vmmswap@{name}.socket", f"vmmswap@{name}.service")


def hostile_command(*arguments: str) -> str:
    return shlex.join(["env", "PYTHONPATH=/usr/lib/vmmswap", "python3", HOSTILE, *arguments])


@pytest.fixture(scope="module")
def host(tree: Path) -> Iterator[Host]:
    if reason := Machine.missing():
        pytest.skip(reason)
    with Machine(binds={installation.INSIDE: str(tree)}) as machine:
        if machine.sh("test -x /usr/lib/polkit-1/polkitd", check=False).returncode != 0:
            pytest.skip("needs polkitd")
        installation.make_inside(machine, "install")
        machine.sh("for user in alice bob eve mallory; do useradd --no-create-home $user; done")
        machine.sh("for user in alice bob; do usermod --append --groups vmmswap $user; done")
        # As the udev rule has it.
        machine.sh("chgrp vmmswap /dev/userfaultfd && chmod 660 /dev/userfaultfd")
        machine.sh(f"cp {SUPPORT}/hostile.py {HOSTILE} && chmod 755 {HOSTILE}")
        machine.sh(f"mkdir -p {Path(RULES).parent} && cat >{RULES}", stdin=MAY_ATTACH)
        machine.sh("systemctl reset-failed polkit.service; systemctl restart polkit.service")
        yield Host(machine)


@contextmanager
def guest_of(host: Host, user: str, name: str) -> Iterator[GuestInside]:
    """A VM of this user on a socket that is there."""
    options = {"regions": ("16M",), "socket": Path(f"/run/vmmswap/{name}.sock")}
    guest = GuestInside(host.machine, f"guest-{name}.service", (), user, **options)
    with guest:
        try:
            assert guest.wait_ready() == name
        except GuestError as error:
            raise GuestError(f"{error}\n{host.log(name)}") from error
        guest.fill()
        yield guest
    host.wait_unit(name, "inactive")


# Whose a name is


def test_snapshot_memory_goes_to_its_vms_owner_only(host: Host) -> None:
    """SnapshotFile= is opened by root. Neither the group nor the attach grant may have it read out."""
    host.machine.sh("install -m 600 /dev/null /srv/secret.mem && truncate -s 1M /srv/secret.mem")
    host.configure("[VM snap]\nSnapshotFile=/srv/secret.mem\n[VM snapowned]\nOwner=bob\n")
    host.machine.run("systemctl", "start", "vmmswap@snap.socket")
    # Mallory may attach, and prepare a name that is nobody's: this one has a socket of the administrator's.
    assert "AccessDenied" in host.host("mallory", "Prepare", "string:snap")
    answer = host.hostile("alice", "handoff", "/run/vmmswap/snap.sock", FIRECRACKERS)
    assert "not a userfaultfd" in answer  # a VM may come from the group; its contents are checked for below
    host.end("snap")
    assert host.host("mallory", "Prepare", "string:snap") == ""
    assert host.socket("snap") == "mallory vmmswap 600"
    host.end("snap")


@pytest.mark.parametrize("message", [FIRECRACKERS, REGISTER], ids=["firecracker", "register"])
def test_nobody_hands_over_under_a_name_that_is_anothers(host: Host, message: str) -> None:
    """Refused for who he is, before anything that he sent is looked at."""
    host.configure("[VM owned]\nOwner=bob\n")
    host.machine.run("systemctl", "start", "vmmswap@owned.socket")
    answer = json.loads(host.hostile("alice", "handoff", "/run/vmmswap/owned.sock", message))
    assert answer["error"] == "org.vmmswap.Error.AccessDenied", answer
    answer = json.loads(host.hostile("bob", "handoff", "/run/vmmswap/owned.sock", message))
    assert answer["error"] != "org.vmmswap.Error.AccessDenied", answer
    assert host.hostile("eve", "handoff", "/run/vmmswap/owned.sock", message) == "PermissionError\n"
    with guest_of(host, "bob", "owned"):
        assert host.status("owned")["State"] == "Ready"
    host.end("owned")


def test_a_prepared_socket_is_its_callers_alone(host: Host) -> None:
    host.configure("")
    assert host.host("mallory", "Prepare", "string:private") == ""
    assert host.socket("private") == "mallory vmmswap 600"
    for user in ("alice", "eve"):
        assert host.hostile(user, "handoff", "/run/vmmswap/private.sock", REGISTER) == "PermissionError\n"
    # He may open his own socket to others. They cannot hand over all the same.
    host.machine.sh("chmod 666 /run/vmmswap/private.sock", user="mallory")
    answer = json.loads(host.hostile("eve", "handoff", "/run/vmmswap/private.sock", REGISTER))
    assert answer["error"] == "org.vmmswap.Error.AccessDenied", answer
    host.end("private")


def test_nobody_prepares_or_attaches_under_a_name_that_is_the_administrators(host: Host) -> None:
    host.configure("[VM bobs]\nOwner=bob\n")
    host.machine.run("systemctl", "enable", "vmmswap@enabled.socket")  # not started yet, as early in a boot
    host.machine.run("systemctl", "start", "vmmswap@started.socket")
    pid = host.machine.unit(
        host.machine.spawn("exec sleep infinity", unit="mallorys.service", user="mallory"), "MainPID"
    )["MainPID"]
    for name in ("enabled", "started", "bobs"):
        for call in (("Prepare", f"string:{name}"), ("Attach", f"string:{name}", f"uint32:{pid}")):
            text = host.host("mallory", *call)
            assert text.startswith("org.vmmswap.Error.AccessDenied: "), (call, text)
    assert host.socket("started") == "root vmmswap 660"
    assert not host.machine.path("/run/vmmswap/enabled.sock").exists()
    assert host.host("bob", "Prepare", "string:bobs") == ""
    assert host.socket("bobs") == "bob vmmswap 600"
    denials = host.machine.journal(MESSAGE_ID=ACCESS_DENIED, VMMSWAP_VM="started")
    assert {entry["VMMSWAP_ACTION"] for entry in denials} == {"org.vmmswap.attach"}
    host.machine.run("systemctl", "stop", "mallorys.service")
    host.machine.run("systemctl", "disable", "vmmswap@enabled.socket")
    for name in ("started", "bobs"):
        host.end(name)


def test_a_refused_attach_leaves_nothing(host: Host) -> None:
    host.configure("")
    unit = host.machine.spawn("exec sleep infinity", unit="plain.service", user="mallory")
    pid = host.machine.unit(unit, "MainPID")["MainPID"]
    assert "no guest memory that can be taken over" in host.host(
        "mallory", "Attach", "string:nothing", f"uint32:{pid}"
    )
    assert not host.machine.path("/run/vmmswap/nothing.sock").exists()
    for directory in ("/var/lib/vmmswap/nothing", "/var/log/vmmswap/nothing"):
        assert not host.machine.path(directory).exists()
    assert host.wait_unit("nothing", "inactive")["Result"] == "success"
    host.machine.run("systemctl", "stop", unit)


def test_an_owner_does_all_with_his_vm_and_nothing_with_anothers(host: Host) -> None:
    host.configure("[VM bobs]\nOwner=bob\n")
    assert host.host("bob", "Prepare", "string:bobs") == ""
    with guest_of(host, "bob", "bobs") as guest:
        # Mallory may attach. That lets her do nothing to a VM that is there.
        for user in ("mallory", "alice", "eve"):
            for member in ("Enable", "Disable", "StartPageFaultLogging", "Exit", "Detach"):
                assert host.manage(user, "bobs", member).startswith("org.vmmswap.Error.AccessDenied: ")
            for call in (("Unprepare", "string:bobs"), ("Prepare", "string:bobs")):
                assert host.host(user, *call).startswith("org.vmmswap.Error.AccessDenied: ")
        assert host.manage("bob", "bobs", "Enable") == ""
        host.wait_state("bobs", "Active")
        host.machine.run("vmmswapctl", "flush", "bobs")  # what stays on RAM makes no ledger
        assert "Busy" in host.host("bob", "Unprepare", "string:bobs")
        assert host.manage("bob", "bobs", "Exit") == ""
        assert guest.verify().wrong_bytes == 0
    host.wait_unit("bobs", "inactive")
    assert host.host("bob", "Unprepare", "string:bobs") == ""
    for path in ("/run/vmmswap/bobs.sock", "/var/log/vmmswap/bobs"):
        assert not host.machine.path(path).exists(), path
    # A budget holds for the name, so its ledger stays.
    assert [path.name for path in host.machine.path("/var/lib/vmmswap/bobs").iterdir()] == ["bobs.written"]
    assert "NoSuchVM" in host.host("bob", "Unprepare", "string:bobs")


def test_a_file_whose_close_waits_stops_its_connection_only(host: Host) -> None:
    host.configure("[VM bobs]\nOwner=bob\n")
    assert host.host("bob", "Prepare", "string:bobs") == ""
    with guest_of(host, "bob", "bobs") as guest:
        host.machine.spawn(
            hostile_command("linger", "/run/vmmswap/bobs.sock"), unit="linger.service", user="bob"
        )
        host.machine.wait_for(
            "its answer",
            lambda: any(
                "Error" in entry["MESSAGE"] for entry in host.machine.journal("--unit=linger.service")
            ),
        )
        assert host.manage("bob", "bobs", "Enable") == ""
        host.wait_state("bobs", "Active")
        assert guest.verify().wrong_bytes == 0
        assert host.wait_unit("bobs", "active")["NRestarts"] == "0"
        host.machine.run("systemctl", "stop", "linger.service")
    host.wait_unit("bobs", "inactive")
    host.end("bobs")


@contextmanager
def printing(host: Host, unit: str, user: str, *arguments: str) -> Iterator[Callable[[str], None]]:
    """A part of foreign_back_end.py, that may have a userfaultfd; what is yielded waits for a line of it."""
    machine = host.machine
    command = shlex.join(["env", "PYTHONPATH=/usr/lib/vmmswap", "python3", BACK_END, *arguments])
    machine.spawn(command, unit=unit, user=user, properties=("SupplementaryGroups=vmmswap",))

    def wait(line: str) -> None:
        def lines() -> list[str]:
            return [str(entry["MESSAGE"]) for entry in machine.journal(f"--unit={unit}")]

        machine.wait_for(f"{line!r} of {unit}: {lines()}", lambda: line in lines())

    try:
        yield wait
    finally:
        machine.run("systemctl", "stop", unit, check=False)  # it may have ended


def test_another_users_back_end_is_added_by_the_userfaultfd_that_it_gave(host: Host) -> None:
    """Its page map may not be opened in the unit's sandbox; its dummy page tells all the same."""
    host.configure("[VM bobs]\nOwner=bob\n")
    host.machine.sh(f"cp {SUPPORT}/foreign_back_end.py {BACK_END} && chmod 755 {BACK_END}")
    assert host.host("bob", "Prepare", "string:bobs") == ""
    expected = f"read {hashlib.sha256(bytes_of_guest()).hexdigest()}"
    with printing(host, "vmm-of-bob.service", "bob", "vmm", "/run/vmmswap/bobs.sock", "/tmp/bobs") as vmm:
        vmm("registered")
        with printing(host, "eves-back-end.service", "eve", "back-end", "/tmp/bobs") as back_end:
            vmm("added")
            assert host.status("bobs")["Processes"] == 2
            host.swap_out("bobs")
            host.machine.run("systemctl", "kill", "--signal=USR1", "eves-back-end.service")
            back_end(expected)
            assert host.status("bobs")["CopiedPages"] > 0
    host.wait_unit("bobs", "inactive")
    host.end("bobs")


# A VMM that knows nothing of vmmswap

VMM = "/opt/qemu-system-mallorys"  # whose seccomp filters, the machine's own, are known to be harmless


@contextmanager
def vmm_of(host: Host, user: str, program: str, *properties: str) -> Iterator[str]:
    """The pid of a process with 32 MiB of shared memory."""
    machine = host.machine
    machine.sh(f"truncate -s 4096 /run/vmm && chown {user} /run/vmm")
    machine.spawn(
        f"exec 9<>/run/vmm; exec {program} 9 32 nanosleep,memory",
        unit="vmm.service",
        user=user,
        properties=properties,
    )
    try:
        machine.wait_for("the VMM", lambda: machine.path("/run/vmm").read_bytes()[:8] != bytes(8))
        yield machine.unit("vmm.service", "MainPID")["MainPID"]
    finally:
        machine.run("systemctl", "stop", "vmm.service")


@contextmanager
def eve_maps_memory_of(host: Host, pid: str) -> Iterator[None]:
    """A process of hers that was given the memory's fd, as a back-end is that runs as another user."""
    listed = host.machine.sh(f"cd /proc/{pid}/fd && stat --format '%n %N' *").stdout.splitlines()
    memfd = next(line.split()[0] for line in listed if "memfd:" in line)
    as_eve = "setpriv --reuid=eve --regid=eve --clear-groups"
    program = "import mmap, time; memory = mmap.mmap(8, 4096); time.sleep(3600)"
    command = f"exec 8<>/proc/{pid}/fd/{memfd}; exec {as_eve} python3 -c '{program}'"
    host.machine.spawn(command, unit="eve.service")
    try:
        yield
    finally:
        host.machine.run("systemctl", "stop", "eve.service")


def test_attach_goes_where_its_caller_may_trace_and_gives_what_he_may_have(host: Host) -> None:
    """Mallory has the grant, and a VMM of her own."""
    host.configure("")
    machine = host.machine
    for path in (VMM, VMM + "-setgid"):
        machine.path(path).parent.mkdir(exist_ok=True)
        shutil.copy(built(SOURCE, "-static"), machine.path(path))
    machine.sh(f"chgrp daemon {VMM}-setgid && chmod 2755 {VMM}-setgid")

    def attach(pid: str) -> str:
        return host.host("mallory", "Attach", "string:mine", f"uint32:{pid}")

    with vmm_of(host, "mallory", VMM + "-setgid") as pid:
        assert "AccessDenied" in (answer := attach(pid)) and "it is not gid" in answer, answer
    with vmm_of(host, "mallory", VMM) as pid:
        assert "AccessDenied" in (answer := attach(pid)) and "its user may not have one" in answer, answer
        assert "userfaultfd" not in machine.sh(f"ls -l /proc/{pid}/fd").stdout
    with vmm_of(host, "mallory", VMM, "SupplementaryGroups=vmmswap") as pid:
        assert attach(pid) == "", host.log("mine")
        assert "anon_inode:[userfaultfd]" in machine.sh(f"ls -l /proc/{pid}/fd").stdout
        assert "/dev/userfaultfd" not in machine.sh(f"ls -l /proc/{pid}/fd").stdout
        host.swap_out("mine")
        with eve_maps_memory_of(host, pid):
            host.wait_state("mine", "Failed")
            status = host.status("mine")
            assert "cannot be attached to" in status["Error"], status
            assert "all memory is swapped in now" in host.log("mine")
            assert "cannot be attached to" in host.manage("mallory", "mine", "Enable")
        host.swap_out("mine")
        assert host.manage("mallory", "mine", "Exit") == ""
        host.wait_unit("mine", "inactive")


BY_VM = """
polkit.addRule(function(action, subject) {
    if (action.id == "org.vmmswap.control" && subject.user == "eve" && action.lookup("vm") == "webone"
        && action.lookup("owner_uid") == "%d") return polkit.Result.YES;
});
"""


def test_a_rule_allows_one_vm(host: Host) -> None:
    uid = int(host.machine.sh("id --user alice").stdout)
    host.configure("[VM webone]\nOwner=alice\n[VM webtwo]\nOwner=alice\n")
    host.machine.sh(f"cat >{RULES}.new && mv {RULES}.new {RULES.replace('10', '20')}", stdin=BY_VM % uid)
    host.machine.sh("systemctl reset-failed polkit.service; systemctl restart polkit.service")
    host.machine.run("systemctl", "start", "vmmswap@webone.socket", "vmmswap@webtwo.socket")
    with guest_of(host, "alice", "webone"), guest_of(host, "alice", "webtwo"):
        assert host.manage("eve", "webone", "Enable") == ""
        assert "AccessDenied" in host.manage("eve", "webtwo", "Enable")
        assert "AccessDenied" in host.manage("eve", "webone", "Exit")
        host.wait_state("webone", "Active")
    for name in ("webone", "webtwo"):
        host.end(name)


# How much


def test_monitors_without_a_vm_end_and_their_number_is_bounded(host: Host) -> None:
    host.configure("[Swap]\nIdleExitSec=0.5\nMaxVMsPerUser=3\n")
    for name in ("many1", "many2", "many3"):  # what she attached before may still be ending

        def prepared(name: str = name) -> bool:
            return host.host("mallory", "Prepare", f"string:{name}") == ""

        host.machine.wait_for(f"the socket of {name}", prepared)
    text = host.host("mallory", "Prepare", "string:many4")
    assert text.startswith("org.vmmswap.Error.Busy: ") and "MaxVMsPerUser=3" in text, text
    assert host.host("root", "Prepare", "string:roots") == ""
    assert "regions" in host.hostile("mallory", "handoff", "/run/vmmswap/many1.sock", REGISTER)
    assert host.machine.journal("--unit=vmmswap@many1.service", "--grep=hand-off refused") != []
    assert host.wait_unit("many1", "inactive")["Result"] == "success"
    assert "regions" in host.hostile("mallory", "handoff", "/run/vmmswap/many1.sock", REGISTER)  # another
    assert host.host("mallory", "Unprepare", "string:many1") == ""
    assert host.host("mallory", "Prepare", "string:many4") == ""
    for name in ("many2", "many3", "many4"):
        assert host.host("mallory", "Unprepare", f"string:{name}") == ""
    host.end("roots")
    for parent in ("/run/vmmswap", "/var/lib/vmmswap", "/var/log/vmmswap"):
        assert list(host.machine.path(parent).glob("many*")) == []


def test_a_monitor_is_in_the_slice_and_without_a_vm_the_first_to_go(host: Host) -> None:
    host.configure("[VM sliced]\nOwner=bob\n")
    host.machine.run("systemctl", "start", "vmmswap@sliced.service")
    assert host.machine.unit("vmmswap@sliced.service", "Slice") == {"Slice": "vmmswap.slice"}
    assert host.machine.unit("vmmswap.slice", "MemoryMax")["MemoryMax"] not in ("infinity", "0")

    def score() -> int:
        return int(host.machine.path(f"/proc/{host.pid('sliced')}/oom_score_adj").read_text())

    assert score() == 500
    with guest_of(host, "bob", "sliced"):
        assert score() <= 0
    host.end("sliced")


@contextmanager
def hostile_unit(host: Host, user: str, *arguments: str) -> Iterator[Path]:
    """The hostile program in the background; what it prints."""
    output = host.machine.path("/run/hostile.output")
    command = f"exec {hostile_command(*arguments)} >/run/hostile.output"
    unit = host.machine.spawn(command, user=user, properties=["KillMode=process"])
    yield output
    host.machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", unit)


def test_one_users_connections_leave_room_for_the_owner(host: Host) -> None:
    host.configure("[VM crowded]\nOwner=bob\nHandoffTimeoutSec=600\n")
    host.machine.run("systemctl", "start", "vmmswap@crowded.socket")
    host.machine.sh("install -o alice /dev/null /run/hostile.output")
    with hostile_unit(host, "alice", "hold", "/run/vmmswap/crowded.sock", "100", "16") as output:
        assert host.machine.wait_for("its connections", output.read_text) == "16\n"
        with guest_of(host, "bob", "crowded"):
            assert host.status("crowded")["State"] == "Ready"
    host.end("crowded")


def test_questions_for_passwords_leave_room_for_root_and_end_with_who_asked(host: Host) -> None:
    """The bus allows vmmswapd 128 replies that are still to come; each of these waits for two minutes."""
    call = ("5", "60", HOST_PATH, f"{HOST_INTERFACE}.Prepare", "s", "eves")
    agents = []
    for _ in range(2):  # the second time shows that nothing of the first is left
        host.machine.sh("install -o eve /dev/null /run/hostile.output")
        with hostile_unit(host, "eve", "flood", *call) as output:

            def all_answered(output: Path = output) -> list[str] | None:
                lines = output.read_text().split()
                return lines if len(lines) > 5 * 60 + 1 else None

            lines = host.machine.wait_for("all but those that wait", all_answered)
            agents.append(lines.pop(0).removeprefix("agent="))
            assert sorted(lines) == ["asked"] * 4 + ["org.vmmswap.Error.Busy"] * 296 + ["sent"]
            assert host.host("root", "Prepare", "string:rooms") == ""
            assert host.host("mallory", "Prepare", "string:rooms2") == ""  # another user, whom polkit answers
            assert host.host("alice", "ListVMs") == ""
            host.end("rooms")
            host.end("rooms2")
    host.machine.sh(f"kill -KILL {' '.join(agents)}")


def test_calls_that_wait_for_a_hung_monitor_leave_room_for_root(host: Host) -> None:
    host.configure("[VM hung]\nOwner=bob\n")
    host.drop_in("hung", "WatchdogSec=0")
    host.machine.run("systemctl", "start", "vmmswap@hung.socket", "vmmswap@well.socket")
    host.machine.sh("install -o eve /dev/null /run/hostile.output")
    with guest_of(host, "bob", "hung"), guest_of(host, "alice", "well"):
        host.machine.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "vmmswap@hung.service")
        call = ("10", "60", object_path_of("hung"), f"{MANAGER_INTERFACE}.Status", "", "")
        with hostile_unit(host, "eve", "flood", *call) as output:
            host.machine.wait_for("the flood", lambda: "sent" in output.read_text().split())
            agent = output.read_text().split()[0].removeprefix("agent=")
            for _ in range(3):
                assert host.manage("root", "well", "Enable") == ""
            (rows,) = host.machine.call(*HOST, "ListVMs")
            assert {name for name, _path, _state in rows} >= {"hung", "well"}
            assert host.manage("bob", "well", "Status") == ""
        host.machine.sh(f"kill -KILL {agent}")
        host.machine.run("systemctl", "kill", "--kill-whom=main", "--signal=CONT", "vmmswap@hung.service")
    for name in ("hung", "well"):
        host.end(name)


# Last: it takes polkit away.


@pytest.fixture
def without_polkit(host: Host) -> Iterator[Host]:
    file = "/usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service"
    reload = "busctl call org.freedesktop.DBus / org.freedesktop.DBus ReloadConfig"
    host.machine.sh(f"mv {file} /srv && systemctl stop polkit.service && {reload}")
    yield host
    host.machine.sh(f"mv /srv/{Path(file).name} {file} && {reload}")


def test_without_polkit_a_name_is_its_owners_too(without_polkit: Host) -> None:
    host = without_polkit
    host.configure("[VM bobs]\nOwner=bob\n")
    host.machine.run("systemctl", "start", "vmmswap@started.socket")
    unit = host.machine.spawn("exec sleep infinity", unit="eves.service", user="eve")
    pid = host.machine.unit(unit, "MainPID")["MainPID"]
    for name in ("started", "bobs"):
        text = host.host("eve", "Attach", f"string:{name}", f"uint32:{pid}")
        assert text.startswith("org.vmmswap.Error.AccessDenied: "), text
    assert "no guest memory that can be taken over" in host.host(
        "eve", "Attach", "string:eves", f"uint32:{pid}"
    )
    assert "AccessDenied" in host.host("eve", "Prepare", "string:eves")
    assert host.host("bob", "Prepare", "string:bobs") == ""
    with guest_of(host, "bob", "bobs"):
        assert "AccessDenied" in host.manage("eve", "bobs", "Enable")
        assert host.manage("bob", "bobs", "Enable") == ""
        host.wait_state("bobs", "Active")
    assert host.host("bob", "Unprepare", "string:bobs") == ""
    host.machine.run("systemctl", "stop", unit)
    host.end("started")
