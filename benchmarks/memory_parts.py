# SPDX-License-Identifier: GPL-2.0-or-later
"""What the private dirty memory of a monitor is made of: by mapping, and how much of it the interpreter takes
with what it has imported.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.rivals import Figures

_HEAD = re.compile(r"^[0-9a-f]+-[0-9a-f]+ (\S+) \S+ \S+ \S+ *(.*)$")
_DIRTY = re.compile(r"^Private_Dirty: +(\d+) kB$")
_STEPS = {
    "interpreter": "pass",
    "with_asyncio": "import vmmswap.without_tls",
    "with_our_modules": "import vmmswap.without_tls, vmmswap.monitor.main, vmmswap.monitor.start",
}
_SHOW = r"""
{}
import gc, re
gc.collect()
print(re.search(r"Private_Dirty: +(\d+)", open("/proc/self/smaps_rollup").read())[1])
"""


def by_mapping(pids: list[int]) -> Figures:
    """Private dirty MiB of these processes together."""
    found = dict.fromkeys(("objects_mib", "heap_mib", "static_data_mib", "libraries_mib", "others_mib"), 0.0)
    found["stored_on_ram_mib"] = 0.0
    for pid in pids:
        part = ""
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            if head := _HEAD.match(line):
                part = _part_of(head[2])
            elif dirty := _DIRTY.match(line):
                found[part] += int(dirty[1]) / 1024
    return dict(found)


def _part_of(path: str) -> str:
    """objects: what Python's own allocator has, thread stacks and the engine's large buffers."""
    if path.startswith("/memfd:vmmswap-"):
        return "stored_on_ram_mib"
    if path == "[heap]":
        return "heap_mib"
    if not path:
        return "objects_mib"
    if "/python3" in path and ".so" not in path:
        return "static_data_mib"
    return "libraries_mib" if ".so" in path else "others_mib"


def by_imports() -> Figures:
    """Private dirty MiB of an interpreter that does nothing but import."""
    found: Figures = {}
    for name, statement in _STEPS.items():
        command = [sys.executable, "-c", _SHOW.format(statement)]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[f"{name}_mib"] = int(shown) / 1024
    return found
