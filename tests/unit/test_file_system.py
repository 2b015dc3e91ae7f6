# SPDX-License-Identifier: GPL-2.0-or-later
"""The kind of file system is what findmnt says."""

import os
import subprocess
from pathlib import Path

import pytest

from vmmswap.file_system import ON_RAM, kind_of


@pytest.mark.parametrize("path", ["/dev/shm", "/", str(Path(__file__).parent)])
def test_as_findmnt_has_it(path: str) -> None:
    shown = subprocess.run(
        ["findmnt", "--noheadings", "--output=FSTYPE", "--target", path],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()[-1]
    fd = os.open(path, os.O_RDONLY)
    try:
        assert kind_of(fd).replace("ext4", "ext") == shown.replace("ext2", "ext").replace("ext4", "ext")
    finally:
        os.close(fd)


def test_a_memfd_is_on_ram() -> None:
    fd = os.memfd_create("x")
    try:
        assert kind_of(fd) in ON_RAM
    finally:
        os.close(fd)
    assert kind_of(-1) == ""
