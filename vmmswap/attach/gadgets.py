# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions for our calls, in the code that the VMM has anyway."""

from __future__ import annotations

from collections.abc import Sequence

from vmmswap.attach.arch import Architecture
from vmmswap.attach.target import Target
from vmmswap.errors import NotSupportedError
from vmmswap.linux.maps import Mapping
from vmmswap.linux.process import read_memory

_MAX_CODE_BYTES = 256 << 20  # of the VMM's code to look through


def find_gadgets(target: Target, arch: Architecture, mappings: Sequence[Mapping]) -> dict[str, int]:
    """Where the instructions that we need are in the target's code: files and the vDSO, nothing that it can
    write.
    """
    found: dict[str, int] = {}
    looked_bytes = 0
    for mapping in sorted(mappings, key=lambda mapping: mapping.size_bytes):
        is_code = mapping.perms[:3] == "r-x" and (not mapping.is_anonymous or mapping.path == "[vdso]")
        if not is_code or looked_bytes > _MAX_CODE_BYTES:
            continue
        looked_bytes += mapping.size_bytes
        try:
            code = read_memory(target.pid, mapping.start, min(mapping.size_bytes, _MAX_CODE_BYTES))
        except OSError:
            continue  # a file shorter than its mapping
        for name, pattern in arch.patterns.items():
            if name not in found and (at := code.find(pattern)) >= 0:
                found[name] = mapping.start + at
        if len(found) == len(arch.patterns):
            return found
    missing = ", ".join(name for name in arch.patterns if name not in found)
    raise NotSupportedError(f"{target}: its code has none of the instructions that attach needs ({missing})")
