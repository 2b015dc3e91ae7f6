# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach's two halves: whose the target is, and the message to its monitor. Real processes, real sockets."""

import asyncio
import json
import os
import pwd
import select
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vmmswap.bus.dispatch import Caller, RemoteError
from vmmswap.errors import AccessDeniedError, BusyError, NotSupportedError, ProtocolError
from vmmswap.host.attach_order import MonitorEndedError, attach_message, connect, raise_reply, send_attach
from vmmswap.host.held_process import HeldProcess
from vmmswap.linux.access import User

NOBODY, STRANGER = (pwd.getpwnam(name).pw_uid for name in ("nobody", "daemon"))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it starts processes of other users")


@contextmanager
def process(*prefix: str) -> Iterator[int]:
    """A process started through these commands; it has run when the block begins."""
    command = [*prefix, "bash", "-p", "-c", "echo; exec sleep 600"]  # -p: it keeps its uids
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as child:
        assert child.stdout
        try:
            child.stdout.readline()
            yield child.pid
        finally:
            child.kill()


def as_uids(real: int, effective: int) -> list[str]:
    return ["setpriv", f"--ruid={real}", f"--euid={effective}", "--clear-groups"]


@contextmanager
def caller(uid: int, *prefix: str) -> Iterator[Caller]:
    """A real process of this user, as the bus would name it."""
    with process(*prefix, *as_uids(uid, uid)) as pid:
        yield Caller(":1.7", uid, pid, interactive=False)


@needs_root
def test_ones_own_process_and_roots_any() -> None:
    with (
        process(*as_uids(NOBODY, NOBODY)) as pid,
        HeldProcess(pid) as target,
        caller(NOBODY) as nobody,
        caller(0) as root,
        caller(STRANGER) as stranger,
    ):
        target.check_owned_by(nobody)
        target.check_owned_by(root)
        with pytest.raises(AccessDeniedError, match=rf"uid {STRANGER} may not attach to process {pid}"):
            target.check_owned_by(stranger)


@needs_root
@pytest.mark.parametrize(("real", "effective"), [(NOBODY, 0), (0, NOBODY), (NOBODY, STRANGER)])
def test_every_uid_of_the_target_counts(real: int, effective: int) -> None:
    with (
        process(*as_uids(real, effective)) as pid,
        HeldProcess(pid) as target,
        caller(NOBODY) as nobody,
        caller(0) as root,
    ):
        with pytest.raises(AccessDeniedError, match=r"its uids are \["):
            target.check_owned_by(nobody)
        target.check_owned_by(root)


@needs_root
def test_another_user_namespace_is_another_owner() -> None:
    user = [*as_uids(NOBODY, NOBODY), "unshare", "--user"]
    if subprocess.run([*user, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("needs user namespaces for unprivileged users")
    with (
        process(*user, "setpriv", "--bounding-set=-all") as pid,
        HeldProcess(pid) as target,
        caller(NOBODY) as nobody,
        pytest.raises(AccessDeniedError, match="another user namespace"),
    ):
        target.check_owned_by(nobody)


@needs_root
def test_a_caller_that_has_become_somebody_else() -> None:
    """The bus tells who connected; the process may run a set-uid program by now, or be another."""
    with process(*as_uids(NOBODY, NOBODY)) as pid, HeldProcess(pid) as target:
        with process(*as_uids(NOBODY, 0)) as other, pytest.raises(AccessDeniedError, match="alone"):
            target.check_owned_by(Caller(":1.7", NOBODY, other, interactive=False))
        with pytest.raises(NotSupportedError, match="has ended"):
            target.check_owned_by(Caller(":1.7", NOBODY, 2**22 + 1, interactive=False))


def test_a_target_that_ends_is_noticed() -> None:
    with subprocess.Popen(["sleep", "600"]) as child, HeldProcess(child.pid) as target:
        child.kill()
        poll = select.poll()
        poll.register(target.pidfd, select.POLLIN)
        assert poll.poll(10_000)
        with pytest.raises(NotSupportedError, match=f"cannot attach to pid {child.pid}: it has ended"):
            target.check_owned_by(
                Caller(":1.7", 0, os.getpid(), interactive=False)
            )  # a zombie is one that has ended


@pytest.mark.parametrize("pid", [0, -1, 2**31, 2**32 - 1, 2**22 + 1])
def test_what_is_no_process(pid: int) -> None:
    with pytest.raises(NotSupportedError, match=f"pid {pid}"):
        HeldProcess(pid)


def test_the_message_holds_the_options() -> None:
    assert json.loads(attach_message({"pins": False, "qmp": "/run/q"})) == {
        "vmmswap": 1,
        "type": "attach",
        "pins": False,
        "qmp": "/run/q",
    }
    assert attach_message({}).endswith(b"\n")
    assert json.loads(attach_message({}, User(1000, 100, 42))) == {
        "vmmswap": 1,
        "type": "attach",
        "uid": 1000,
        "gid": 100,
        "caller_pid": 42,
    }


@pytest.mark.parametrize(
    "options",
    [{"type": "x"}, {"vmmswap": 2}, {"qmp": b"1"}, {"pins": float("nan")}, {"region": ["1-2"]}, {"": True}],
)
def test_options_that_the_message_cannot_hold(options: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="options"):
        attach_message(options)


async def answered(path: Path, reply: bytes) -> tuple[bytes, int]:
    """Attach ourselves to a listener that gives this reply; the line, and the pid that its pidfd names."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, HeldProcess(os.getpid()) as target:
        listener.bind(str(path))
        listener.listen()
        sending = asyncio.create_task(send_attach(connect(path), attach_message({}), target.pidfd))
        await asyncio.sleep(0)
        stream, _address = listener.accept()
        with stream:
            line, fds, _flags, _peer = await asyncio.to_thread(socket.recv_fds, stream, 4096, 8)
            stream.sendall(reply)
        fdinfo = [Path(f"/proc/self/fdinfo/{fd}").read_text() for fd in fds]
        for fd in fds:
            os.close(fd)
        await sending
    [pid] = [int(row.split()[1]) for text in fdinfo for row in text.splitlines() if row.startswith("Pid:")]
    return line, pid


async def test_the_monitor_gets_one_line_and_one_pidfd(tmp_path: Path) -> None:
    line, pid = await answered(tmp_path / "s", b'{"type":"ready","name":"web"}\n')
    assert (json.loads(line), pid) == ({"vmmswap": 1, "type": "attach"}, os.getpid())


async def test_the_monitors_error_comes_through(tmp_path: Path) -> None:
    reply = (
        b'{"type":"error","error":"org.vmmswap.Error.Busy","message":"web has a VM: choose another name"}\n'
    )
    with pytest.raises(BusyError, match="web has a VM: choose another name"):
        await answered(tmp_path / "s", reply)


async def test_a_refusal_that_is_quicker_than_we_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monitor has answered and closed the connection before send_fds() returns: no "Broken pipe"."""
    really_send = socket.send_fds
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, HeldProcess(os.getpid()) as target:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def send_and_be_refused(*arguments: Any) -> int:
            sent_bytes = really_send(*arguments)
            stream, _address = listener.accept()
            with stream:
                stream.recv(1)  # the rest is never read
                stream.sendall(b'{"type":"error","error":"org.vmmswap.Error.Busy","message":"taken"}\n')
            return sent_bytes

        monkeypatch.setattr(socket, "send_fds", send_and_be_refused)
        for message in (attach_message({}), attach_message({"qmp": "x" * 500_000})):
            with pytest.raises(BusyError, match="taken"):
                await send_attach(connect(tmp_path / "s"), message, target.pidfd)


async def test_a_monitor_that_hangs_up(tmp_path: Path) -> None:
    with pytest.raises(MonitorEndedError, match="ended before it answered"):
        await answered(tmp_path / "s", b"")


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(NotSupportedError, match="no monitor answers at"):
        connect(tmp_path / "s")


@pytest.mark.parametrize("line", [b"{", b"[]\n", b"7\n", b'{"type":"error"}\n', b'{"type":[]}\n', b"\xff\n"])
def test_replies_that_are_none(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        raise_reply(line)


def test_error_names_in_replies() -> None:
    with pytest.raises(RemoteError) as new:
        raise_reply(b'{"type":"error","error":"org.vmmswap.Error.New","message":"m"}')
    assert new.value.error_name == "org.vmmswap.Error.New"
    with pytest.raises(ProtocolError, match="not a name: m"):
        raise_reply(b'{"type":"error","error":"not a name","message":"m"}')
