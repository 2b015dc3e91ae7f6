# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU says of its memory chooses among what its mappings show, and adds nothing to that."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.qmp_server import QmpServer
from vmmswap.attach.further_private import PrivateView
from vmmswap.attach.private_memory import Seen
from vmmswap.attach.ram_blocks import RamBlocks, parse_ram_blocks
from vmmswap.errors import NotSupportedError
from vmmswap.linux.files import FileId
from vmmswap.linux.maps import Mapping
from vmmswap.monitor.mappers import qemu_memory
from vmmswap.monitor.mappers.qemu_memory import ask_ram_blocks

MIB = 1 << 20

# As Debian 12's QEMU 7.2.22 answers: -m 300M,slots=2,maxmem=1G -vga std, and a pc-dimm of 64 MiB.
OLD = """\
              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000004000000 0x0000000012c00000 0x0000000012c00000
                    mem1    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000
   0000:00:02.0/vga.vram    4 KiB  0x0000000016c80000 0x0000000001000000 0x0000000001000000
    /rom@etc/acpi/tables    4 KiB  0x0000000017cc0000 0x0000000000020000 0x0000000000200000
                 pc.bios    4 KiB  0x0000000016c00000 0x0000000000040000 0x0000000000040000
                  pc.rom    4 KiB  0x0000000016c40000 0x0000000000020000 0x0000000000020000
    0000:00:02.0/vga.rom    4 KiB  0x0000000017c80000 0x0000000000010000 0x0000000000010000
   /rom@etc/table-loader    4 KiB  0x0000000017ec0000 0x0000000000001000 0x0000000000010000
      /rom@etc/acpi/rsdp    4 KiB  0x0000000017f00000 0x0000000000001000 0x0000000000001000
"""
MEMDEV = [
    {"share": False, "size": 64 * MIB, "merge": True, "policy": "default", "id": "mem1", "host-nodes": []},
    {"share": False, "size": 300 * MIB, "merge": True, "policy": "default", "id": "pc.ram"},
]
RAM, DIMM, VIDEO = 0x7FA069200000, 0x7FA083E00000, 0x7FA082C00000  # where that QEMU had them
# In the format of QEMU 8.0 and newer (system/physmem.c, ram_block_format()).
NEW = """\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                  pc.ram    4 KiB  0x0000000004000000 0x0000000012c00000 0x0000000012c00000 0x00007fa069200000  rw
           /objects/mem1    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000 0x00007fa083e00000  rw
   0000:00:02.0/vga.vram    4 KiB  0x0000000016c80000 0x0000000001000000 0x0000000001000000 0x00007fa082c00000  rw
                 pc.bios    4 KiB  0x0000000016c00000 0x0000000000040000 0x0000000000040000 0x00007fa0cd200000  ro
"""  # noqa: E501 - as it is printed


def text(printed: str) -> dict[str, str]:
    return {"human-readable-text": printed}


def seen(start: int, size_bytes: int, refusal: str = "") -> Seen:
    return Seen(Mapping(start, start + size_bytes, "rw-p", 0, FileId(0, 0)), refusal)


HEAP = seen(0x55D98B27B000, 20 * MIB, "private memory that forked children get")
OTHER = seen(0x7FB000000000, 32 * MIB)  # kept from children, and no block of QEMU's
ALL = [seen(RAM, 300 * MIB), seen(VIDEO, 16 * MIB), seen(DIMM, 64 * MIB), OTHER, HEAP]


def taken(blocks: RamBlocks, found: list[Seen]) -> list[tuple[int, int]]:
    return [
        (item.mapping.start, item.mapping.size_bytes) for item in blocks.choose(found) if not item.refusal
    ]


def refusals(blocks: RamBlocks, found: list[Seen]) -> dict[int, str]:
    return {item.mapping.start: item.refusal for item in blocks.choose(found) if item.refusal}


def test_by_address() -> None:
    blocks = parse_ram_blocks(text(NEW), MEMDEV)
    assert taken(blocks, ALL) == [(RAM, 300 * MIB), (DIMM, 64 * MIB)]
    why = refusals(blocks, ALL)
    assert why[VIDEO] == "QEMU's '0000:00:02.0/vga.vram', which is no RAM of the guest"
    assert why[OTHER.mapping.start] == "QEMU names no RAM there"
    assert why[HEAP.mapping.start] == HEAP.refusal


def test_by_size_where_no_address_is_printed() -> None:
    blocks = parse_ram_blocks(text(OLD), MEMDEV)
    assert not blocks.has_addresses
    assert taken(blocks, ALL) == [(RAM, 300 * MIB), (DIMM, 64 * MIB), (OTHER.mapping.start, 32 * MIB)]
    assert "by its size QEMU's '0000:00:02.0/vga.vram'" in refusals(blocks, ALL)[VIDEO]


def test_ram_as_large_as_video_memory_is_taken_by_size() -> None:
    blocks = parse_ram_blocks(text(OLD.replace("0000000004000000\n", "0000000001000000\n", 1)), MEMDEV)
    assert (VIDEO, 16 * MIB) in taken(blocks, ALL)


def test_two_blocks_of_one_mapping() -> None:
    whole = seen(RAM, 400 * MIB)
    end = RAM + 300 * MIB
    blocks = parse_ram_blocks(text(NEW.replace("7fa083e00000", f"{end:x}")), MEMDEV)
    assert taken(blocks, [whole]) == [(RAM, 300 * MIB), (end, 64 * MIB)]


def test_it_names_no_memory_that_the_mappings_do_not_allow(caplog: pytest.LogCaptureFixture) -> None:
    """The heap, which children get; what is larger than the mapping; what is mapped nowhere."""
    for place in (HEAP.mapping.start, VIDEO, 0x1000):
        blocks = parse_ram_blocks(text(NEW.replace("7fa069200000", f"{place:x}")), [{"id": "pc.ram"}])
        assert taken(blocks, ALL) == taken(RamBlocks((), False), ALL), hex(place)  # by size and shape
        assert "no RAM that QEMU names is found in its mappings" in caplog.text
        caplog.clear()


def test_nothing_is_taken_where_nothing_could_be(caplog: pytest.LogCaptureFixture) -> None:
    assert taken(parse_ram_blocks(text(NEW), MEMDEV), [HEAP]) == []
    assert not caplog.records


def test_memory_that_is_added() -> None:
    """Video memory, which was left, is left again."""
    blocks = parse_ram_blocks(text(NEW), MEMDEV)
    view = PrivateView(tuple(item.mapping for item in ALL if not item.refusal))
    assert [item.addr for item in view.further([ALL[0].region], blocks)] == [DIMM]
    assert view.further([ALL[0].region, ALL[2].region], blocks) == []
    assert VIDEO in [item.addr for item in view.further([ALL[0].region])]


ROW = "pc.ram    4 KiB  0x0000000004000000 0x0000000012c00000 0x0000000012c00000 0x00007fa069200000  rw\n"
HEAD = NEW.splitlines(keepends=True)[0]


@pytest.mark.parametrize(
    "printed",
    [
        "",
        "\n",
        "Block Name PSize Offset Used\n",
        "Name Block PSize Offset Used Total\n",
        HEAD + "x\n",
        HEAD + ROW.replace("0x00007fa069200000", "here"),
        HEAD + ROW.replace("0x0000000012c00000 ", "", 1),
        HEAD + ROW.replace("pc.ram", ""),
        HEAD + ROW.replace("7fa069200000", "7fa069200001"),
        HEAD + ROW.replace("00007fa069200000", "0000000000000000"),
        HEAD + ROW.replace("00007fa069200000", "fffffffffffff000"),
        HEAD + ROW.replace("0x00007fa069200000", "-0x1000"),
        HEAD + ROW.replace("0x0000000012c00000 0x00007", "0x0000000000000000 0x00007"),
        HEAD + ROW + ROW,
        HEAD + ROW.replace("0x00007fa069200000", "0x" + "f" * 600),
        HEAD + ROW.replace("pc.ram", "vga") * 5000,
    ],
)
def test_malformed(printed: str) -> None:
    with pytest.raises(NotSupportedError, match="QEMU"):
        parse_ram_blocks(text(printed), MEMDEV)


@pytest.mark.parametrize("answer", [None, 7, "x", [], [1], {"a": 1}, {"human-readable-text": 1}])
def test_odd_answers(answer: object) -> None:
    with pytest.raises(NotSupportedError, match="QEMU answers x-query-ramblock"):
        parse_ram_blocks(answer, MEMDEV)
    if not isinstance(answer, list):
        with pytest.raises(NotSupportedError, match="QEMU answers query-memdev"):
            parse_ram_blocks(text(NEW), answer)


def test_odd_backends_make_no_ram() -> None:
    blocks = parse_ram_blocks(text(NEW), [1, None, {"id": 7}, {}, {"id": ["pc.ram"]}])
    assert not any(block.is_ram for block in blocks.blocks)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[QmpServer]:
    with QmpServer(tmp_path / "qmp.sock") as running:
        running.answers["x-query-ramblock"] = lambda _: text(NEW)
        running.answers["query-memdev"] = lambda _: MEMDEV
        yield running


async def test_asked(server: QmpServer) -> None:
    assert await ask_ram_blocks(str(server.path), os.getpid()) == parse_ram_blocks(text(NEW), MEMDEV)
    assert server.commands == ["qmp_capabilities", "x-query-ramblock", "query-memdev"]


async def test_a_qemu_that_does_not_know_it(server: QmpServer, caplog: pytest.LogCaptureFixture) -> None:
    server.refuses["x-query-ramblock"] = "The command x-query-ramblock has not been found"
    assert await ask_ram_blocks(str(server.path), os.getpid()) is None
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "x-query-ramblock has not been found" in record.getMessage()


async def test_a_malformed_answer(server: QmpServer, caplog: pytest.LogCaptureFixture) -> None:
    server.answers["query-memdev"] = lambda _: "none"
    assert await ask_ram_blocks(str(server.path), os.getpid()) is None
    assert "QEMU answers query-memdev with 'none'" in caplog.text


async def test_no_answer(
    server: QmpServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another client has the socket."""
    monkeypatch.setattr(qemu_memory, "_LIMIT_S", 0.05)
    reader, writer = await asyncio.open_unix_connection(server.path)
    assert b"QMP" in await reader.readline()
    assert await ask_ram_blocks(str(server.path), os.getpid()) is None
    writer.close()
    assert "does not answer within 0.05 s" in caplog.text


async def test_another_process_listens_there(server: QmpServer, caplog: pytest.LogCaptureFixture) -> None:
    assert await ask_ram_blocks(str(server.path), os.getppid()) is None
    assert server.commands == []
    assert "listens there" in caplog.text
