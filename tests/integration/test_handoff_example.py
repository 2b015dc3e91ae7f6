# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/examples/handoff.c, the example for authors of VMMs: compiled strictly, and run.

Against a few lines of socket code that look at every byte and fd that it sends, and against our own server.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import json
import os
import select
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.handoff import RecordingHandler, further_limits, serving

SOURCE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "handoff.c"
DEADLINE_S = 60
SIZE_BYTES = 64 << 20


@pytest.fixture(scope="module", params=["gcc", "clang"])
def program(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("example") / "handoff"
    made = subprocess.run(
        [request.param, "-Wall", "-Wextra", "-Werror", "-o", path, SOURCE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (made.returncode, made.stderr) == (0, "")
    return path


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_example_of_private_memory_compiles(compiler, tmp_path):
    private_program(compiler, tmp_path / "handoff_private")


def private_program(compiler, path):
    planted = SOURCE.parents[2] / "engine" / "planted"
    made = subprocess.run(
        [
            *(
                compiler,
                "-Wall",
                "-Wextra",
                "-Werror",
                f"-I{planted}",
                f"-I{planted.parent / 'src'}",
                "-o",
                path,
            ),
            *(SOURCE.with_name("handoff_private.c"), planted / "mover_thread.c"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (made.returncode, made.stderr) == (0, "")
    return path


@contextlib.contextmanager
def running(*argv):
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@contextlib.contextmanager
def listening(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(DEADLINE_S)
        yield listener


def accept(listener):
    connection, _ = listener.accept()
    connection.settimeout(DEADLINE_S)
    return connection


def receive(connection, closing):
    """The message and its fds, from one recvmsg: the contract wants one sendmsg."""
    data, control, flags, _ = connection.recvmsg(1 << 20, socket.CMSG_SPACE(253 * 4))
    assert not flags & socket.MSG_CTRUNC
    assert data.endswith(b"\n")
    ((level, kind, payload),) = control
    assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
    fds = array.array("i", payload)
    for fd in fds:
        closing.callback(os.close, fd)
    return json.loads(data), list(fds)


def read_line(process):
    # Unbuffered on our side, so that select() tells the truth.
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([process.stdout], [], [], DEADLINE_S)[0], f"only {line} came"
        piece = os.read(process.stdout.fileno(), 1)
        assert piece, f"the example ended after {line}"
        line += piece
    return line.decode()


def ask(process):
    """The example's answer to a line: it looks at its memory."""
    process.stdin.write("\n")
    process.stdin.flush()
    return read_line(process)


def test_sends_what_the_contract_says(program, tmp_path):
    with contextlib.ExitStack() as closing:
        listener = closing.enter_context(listening(tmp_path / "web.sock"))
        process = closing.enter_context(running(program, tmp_path / "web.sock"))
        connection = closing.enter_context(accept(listener))
        message, (uffd, memfd) = receive(connection, closing)

        (region,) = message.pop("regions")
        dummy_page = message.pop("dummy_page")
        assert message == {"vmmswap": 1, "type": "register"}
        addr = region.pop("base_host_virt_addr")
        assert region == {"size": SIZE_BYTES, "offset": 0, "page_size": 4096, "memfd": 0}

        assert str(Path(f"/proc/self/fd/{uffd}").readlink()) == "anon_inode:[userfaultfd]"
        assert fcntl.fcntl(uffd, fcntl.F_GETFL) & os.O_NONBLOCK
        assert os.fstat(memfd).st_size == SIZE_BYTES
        assert os.pread(memfd, 8, 800) == (100).to_bytes(8, "little")
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert f"\n{addr:x}-{addr + SIZE_BYTES:x} rw-s 00000000 " in f"\n{maps}"
        assert _is_mapped(maps, dummy_page)

        connection.sendall(b'{"type":"ready","name":"web"}\n')
        assert json.loads(read_line(process)) == {"type": "ready", "name": "web"}
        assert ask(process) == "right\n"
        process.stdin.close()
        assert connection.recv(1) == b""  # at the end of its work it closes the connection
        assert process.wait(DEADLINE_S) == 0


def test_asks_again_when_the_monitor_ends_before_ready(program, tmp_path):
    with contextlib.ExitStack() as closing:
        listener = closing.enter_context(listening(tmp_path / "web.sock"))
        process = closing.enter_context(running(program, tmp_path / "web.sock"))
        messages = []
        for _ in range(3):
            with accept(listener) as connection:
                messages.append(receive(connection, closing)[0])
        assert messages[0] == messages[1] == messages[2]
        connection = closing.enter_context(accept(listener))
        receive(connection, closing)
        connection.sendall(b'{"type":"ready","name":"web"}\n')
        assert "ready" in read_line(process)


def test_reports_a_refusal(program, tmp_path):
    with contextlib.ExitStack() as closing:
        listener = closing.enter_context(listening(tmp_path / "web.sock"))
        process = closing.enter_context(running(program, tmp_path / "web.sock"))
        connection = closing.enter_context(accept(listener))
        receive(connection, closing)
        connection.sendall(b'{"type":"error","error":"org.vmmswap.Error.Busy","message":"web is taken"}\n')
        assert process.wait(DEADLINE_S) == 1
        assert "web is taken" in process.stderr.read()


@pytest.mark.parametrize(("path", "status"), [("/nowhere/web.sock", 1), ("/" + "x" * 200, 2)])
def test_unusable_path_is_one_clear_line(program, path, status):
    ended = subprocess.run([program, path], capture_output=True, text=True, check=False)
    assert ended.returncode == status
    assert path in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


async def test_our_own_server_takes_it(program, tmp_path):
    handler = RecordingHandler()
    async with serving(handler, tmp_path / "web.sock"):
        with running(program, tmp_path / "web.sock") as process:
            line = await asyncio.to_thread(read_line, process)
            assert json.loads(line) == {"type": "ready", "name": "web"}
            (request,) = handler.requests
            assert request.peer.pid == process.pid
            assert request.process.is_proven
            assert not further_limits(request.process)
            process.stdin.close()
            assert await handler.lost.get() is None


def _is_mapped(maps, addr):
    spans = (line.split()[0].split("-") for line in maps.splitlines())
    return any(int(start, 16) <= addr < int(end, 16) for start, end in spans)
