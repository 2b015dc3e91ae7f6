# SPDX-License-Identifier: GPL-2.0-or-later
"""Which vhost-user back-ends may come anew, by QEMU's command line and by what QMP tells."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.qmp_server import QmpServer
from vmmswap.attach.back_ends import CommandLine, parse_command_line
from vmmswap.errors import NotSupportedError
from vmmswap.monitor.mappers.added_back_ends import check_added_back_ends


@pytest.mark.parametrize(
    ("chardev", "may"),
    [
        ("", False),
        (",server=on,wait=off", True),
        (",server", True),
        (",server=yes", True),
        (",server=off", False),
        (",reconnect=1", True),
        (",reconnect=0", False),
        (",reconnect-ms=500", True),
    ],
)
@pytest.mark.parametrize(
    "device",
    [
        "vhost-user-fs-pci,chardev=c0,tag=share",
        '{"driver":"vhost-user-blk-pci","id":"d0","chardev":"c0"}',
        "vhost-user,id=n0,chardev=c0",
        "cryptodev-vhost-user,id=k0,chardev=c0",
    ],
)
def test_the_command_line(device: str, chardev: str, may: bool) -> None:
    words = ["-chardev", f"socket,id=c0,path=/tmp/vhost-user.sock{chardev}", "-device", device]
    found = parse_command_line(["qemu", *words, "-chardev", "socket,id=qmp,path=q,server=on", ""])
    assert found.users == {"c0"}
    assert found.reconnectable == ("c0" if may else None)


@pytest.mark.parametrize(
    ("words", "may"),
    [
        (["--net", "vhost_user=true,socket=/run/n,vhost_mode=server"], True),
        (["--disk", "vhost_user=true,socket=/run/d"], True),
        (["--fs", "tag=share,socket=/run/f"], True),
        (["--disk", "path=/disk", "--net", "tap=t0"], False),
    ],
)
def test_cloud_hypervisor_connects_again(words: list[str], may: bool) -> None:
    assert bool(parse_command_line(["cloud-hypervisor", *words]).reconnectable) is may


def test_names_of_other_things_are_other_names() -> None:
    words = [
        "-chardev",
        "socket,id=net0,path=/tmp/s,reconnect=1",
        "-netdev",
        "vhost-user,id=net0,chardev=net0",
    ]
    assert (
        parse_command_line([*words, "-device", "virtio-net-pci,netdev=net0,id=net0"]).reconnectable == "net0"
    )
    words = ["--chardev", "socket,id=c0,path=/tmp/s", "-object", "iothread,id=c0,server=on"]
    assert parse_command_line([*words, "-device", "vhost-user-fs-pci,chardev=c0"]).reconnectable is None


@pytest.mark.parametrize("word", ["{", "[1]", "{}", '{"chardev":"vhost-user"', "{" * 100_000, "=,=,,", ""])
def test_odd_words(word: str) -> None:
    assert parse_command_line([word]).reconnectable is None


TYPES = {
    "/machine/peripheral": [
        {"name": "disk", "type": "child<vhost-user-blk-pci>"},
        {"name": "type", "type": "string"},
    ],
    "/machine/peripheral-anon": [{"name": "device[0]", "type": "child<virtio-balloon-pci>"}],
    "/objects": [],
}
CHARDEVS = [
    {"label": "mon", "filename": "unix:/run/q.sock,server=on", "frontend-open": True},
    {"label": "c0", "filename": "unix:", "frontend-open": True},
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[QmpServer]:
    """This process is the VMM. It was given a device with the character device c0."""
    with QmpServer(tmp_path / "qmp.sock") as running:
        running.answers = {
            "qom-list": lambda arguments: TYPES[arguments["path"]],
            "qom-get": lambda arguments: {"/machine/peripheral/disk": "c0"}[arguments["path"]],
            "query-chardev": lambda _: CHARDEVS,
            "human-monitor-command": lambda _: "n0: index=0,type=tap,ifname=tap0\r\n",
        }
        yield running


async def check(server: QmpServer, **given: bool) -> None:
    """given: character devices on the command line, and whether their other ends may come anew."""
    command_line = CommandLine(frozenset(), given)
    await check_added_back_ends(str(server.path), os.getpid(), "process 1 (qemu)", command_line)


async def test_one_that_was_added(server: QmpServer) -> None:
    with pytest.raises(NotSupportedError, match=r"given a vhost-user back-end while it ran \(chardev c0\)"):
        await check(server)


@pytest.mark.parametrize("may", [False, True])
async def test_one_that_was_added_to_a_character_device_of_the_command_line(
    server: QmpServer, may: bool
) -> None:
    if may:
        with pytest.raises(NotSupportedError, match=r"connect again \(chardev c0\)"):
            await check(server, c0=True)
    else:
        await check(server, c0=False)


async def test_one_that_listens(server: QmpServer) -> None:
    server.answers["query-chardev"] = lambda _: [{"label": "c0", "filename": "unix:/x,server=on <-> @"}]
    with pytest.raises(NotSupportedError, match=r"connect again \(chardev c0\)"):
        await check(server)


async def test_a_network_device(server: QmpServer) -> None:
    server.answers["qom-list"] = lambda _: []
    server.answers["human-monitor-command"] = lambda _: (
        "net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\r\n"
        " \\ n0: index=0,type=vhost-user,vhost-user0 to chr0\r\n"
    )
    with pytest.raises(NotSupportedError, match=r"chardev chr0\)"):
        await check(server)


async def test_none(server: QmpServer) -> None:
    server.answers["qom-list"] = lambda _: [{"name": "b0", "type": "child<virtio-blk-pci>"}]
    await check(server)
    assert "query-chardev" not in server.commands


async def test_a_device_without_a_character_device(server: QmpServer) -> None:
    server.refuses["qom-get"] = "Property 'vhost-user-blk-pci.chardev' not found"
    await check(server)


@pytest.mark.parametrize("answer", [None, 7, "x", [1], {"a": 1}, [{"name": 1}]])
async def test_odd_answers(server: QmpServer, answer: object) -> None:
    for command in server.answers:
        server.answers[command] = lambda _: answer
    await check(server)


async def test_qmp_that_cannot_be_asked(server: QmpServer, caplog: pytest.LogCaptureFixture) -> None:
    server.refuses["qom-list"] = "not now"
    with caplog.at_level(logging.WARNING):
        await check(server)
    assert "cannot tell if process 1 (qemu) was given vhost-user devices while it ran: " in caplog.text
    assert "QMP qom-list: 'not now'" in caplog.text
