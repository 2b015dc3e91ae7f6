# SPDX-License-Identifier: GPL-2.0-or-later
"""Which mappings may be the private memory of a VM."""

import pytest

from vmmswap.errors import InvalidRegionError
from vmmswap.handoff.maps import Mapping, check_private
from vmmswap.handoff.region import Region
from vmmswap.linux.files import FileId

NO_FILE = FileId(0, 0)
REGION = Region(0x10000, 0x4000, 0, 0)


def mappings(perms, file=NO_FILE):
    return [
        Mapping(0xF000, 0x11000, "rw-p", 0, NO_FILE),
        Mapping(0x11000, 0x13000, perms, 0, file),
        Mapping(0x13000, 0x20000, "rw-p", 0, NO_FILE),
    ]


@pytest.mark.parametrize("perms", ["rw-p", "r--p", "---p"])
def test_private_anonymous_memory_whatever_is_allowed_there_now(perms):
    check_private(mappings(perms), "regions[0]", REGION, advice="use memfds")


@pytest.mark.parametrize(
    ("perms", "file"), [("rw-s", NO_FILE), ("rwxp", NO_FILE), ("r-xp", NO_FILE), ("rw-p", FileId(1, 2))]
)
def test_shared_memory_programs_and_files_are_not(perms, file):
    with pytest.raises(InvalidRegionError, match="which is not private anonymous memory"):
        check_private(mappings(perms, file), "regions[0]", REGION, advice="use memfds")


def test_memory_that_is_not_mapped_is_not():
    with pytest.raises(InvalidRegionError, match="0x11000 is not mapped"):
        check_private(mappings("rw-p")[::2], "regions[0]", REGION, advice="use memfds")
