# SPDX-License-Identifier: GPL-2.0-or-later
"""The store of tiers and the file of raw pages against what else could be done with the same pages."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import linux_guest
from benchmarks.rivals import (
    Figures,
    Runs,
    compile_program,
    dd,
    in_turns,
    medians,
    paired,
    ratio,
    run_json,
    table,
)

TMPFS = Path("/dev/shm")  # noqa: S108 - a swap directory in RAM
ZRAM_MISSING = 77  # zram.h


def _has_zram(program: Path) -> bool:
    found = subprocess.run(
        [program, "zram", "random", "1", TMPFS], check=False, capture_output=True, text=True
    )
    if found.returncode not in (0, ZRAM_MISSING):
        raise RuntimeError(found.stderr)
    return found.returncode == 0


def _jobs(pairs: Sequence[tuple[str, str]], mib: int, swap_dir: Path, rounds: int) -> Runs:
    """pairs: of a store and the contents of memory, or ("dd", ""). Each is "STORE CONTENTS" in the result."""
    program = compile_program("tier_job")
    if any(store == "zram" for store, _ in pairs) and not _has_zram(program):
        print("\nThis kernel has no zram, or we may not make a device: its rows are missing.")
        pairs = [pair for pair in pairs if pair[0] != "zram"]
    rivals = {
        f"{store} {contents}".strip(): partial(dd, swap_dir, mib)
        if store == "dd"
        else partial(run_json, [program, store, contents, str(mib), swap_dir])
        for store, contents in pairs
    }
    return in_turns(rivals, rounds)


def _show(title: str, runs: Runs, columns: Sequence[str]) -> dict[str, Figures]:
    rows = medians(runs)
    table(title, {name: {key: row[key] for key in columns if key in row} for name, row in rows.items()})
    return rows


def bench_ram(contents: str, mib: int, swap_dir: Path, rounds: int, name: str = "") -> None:
    """What the RAM tier frees, how fast, and what the monitor needs for it."""
    columns = ("out_mib_per_s", "out_cpu_ms", "in_mib_per_s", "net_freed_ratio", "own_bytes_a_page")
    stores = ("zram", "lz4", "file", "ram", "disk")
    name = name or contents
    runs = _jobs([(store, contents) for store in stores], mib, swap_dir, rounds)
    runs = {row.replace(contents, name): found for row, found in runs.items()}
    zram, lz4, file, ram, disk = (f"{store} {name}" for store in stores)
    rows = _show(f"{mib} MiB, {name}", runs, columns)
    if zram in rows:
        ratio(
            f"net memory freed by the RAM tier over zram with LZ4, {name}",
            paired(runs, (ram, "net_freed_ratio"), (zram, "net_freed_ratio")),
            "at least 0.95",
        )
    ratio(
        f"net memory freed by the RAM tier, {name}", rows[ram]["net_freed_ratio"], "at least 0.6 of a guest"
    )
    ratio(f"net memory freed with disk, {name}", rows[disk]["net_freed_ratio"], "at least 0.97")
    ratio(
        f"swap-out into the RAM tier over LZ4 alone, {name}",
        paired(runs, (ram, "out_mib_per_s"), (lz4, "out_mib_per_s")),
        "at least 0.8",
    )
    ratio(
        f"the same by processor time, {name}",
        paired(runs, (lz4, "out_cpu_ms"), (ram, "out_cpu_ms")),
        "at least 0.8",
    )
    ratio(
        f"bytes a page that is out, beyond those of the file of raw pages, {name}",
        rows[ram]["own_bytes_a_page"] - rows[file]["own_bytes_a_page"],
        "at most 16",
    )


def bench_guest(swap_dir: Path, rounds: int) -> None:
    """The same for the memory of a Linux guest that was booted for it."""
    reason = linux_guest.why_not()
    if reason:
        print(f"\nNo Linux guest: {reason}.")
        return
    with tempfile.NamedTemporaryFile(dir=TMPFS) as memory:
        linux_guest.dump(Path(memory.name))
        bench_ram(memory.name, linux_guest.MEMORY_MIB, swap_dir, rounds, "a Linux guest")


def bench_disk(mib: int, swap_dir: Path, rounds: int) -> None:
    """Swap-out to disk and swap-in from there: encrypted, raw, and dd."""
    columns = (
        *("out_mib_per_s", "out_ms", "out_cpu_ms", "written_mib"),
        *("in_mib_per_s", "in_ms", "in_cpu_ms", "write_mib_per_s", "read_mib_per_s"),
    )
    pairs = [("dd", "")]
    pairs += [(store, contents) for contents in ("libs", "random", "holes") for store in ("file", "disk")]
    runs = _jobs(pairs, mib, swap_dir, rounds)
    _show(f"{mib} MiB, {swap_dir}", runs, columns)
    for contents, wanted in (("libs", "more than 1"), ("random", "at least 0.9")):
        ratio(
            f"swap-out to disk, encrypted over raw pages, {contents}",
            paired(runs, (f"disk {contents}", "out_mib_per_s"), (f"file {contents}", "out_mib_per_s")),
            wanted,
        )
    for store in ("file", "disk"):
        for way, dd_key in (("out", "write_mib_per_s"), ("in", "read_mib_per_s")):
            ratio(
                f"swap-{way} over dd, {store}",
                paired(runs, (f"{store} random", f"{way}_mib_per_s"), ("dd", dd_key)),
                "at least 0.9",
            )
        ratio(
            f"time of the swap-out, every second page zeros over all random, {store}",
            paired(runs, (f"{store} holes", "out_ms"), (f"{store} random", "out_ms")),
            "at most 1",
        )


def bench_faults(pages: int, rounds: int) -> None:
    """One page at a time out of the RAM tier, random order, pages of libraries."""
    program = compile_program("fault_latency")
    rivals = {
        name: partial(run_json, [program, name, str(pages), "rnd", TMPFS, "libs"])
        for name in ("samecpu", "samecpu-lz4", "engine", "engine-ram")
    }
    runs = in_turns(rivals, rounds)
    rows = medians(runs)
    table(f"One page fault, {pages} pages, rnd, libs", rows)
    ratio(
        "out of the RAM tier over the same-CPU floor that decompresses, p50",
        paired(runs, ("engine-ram", "p50_us"), ("samecpu-lz4", "p50_us")),
        "at most 1.35",
    )
    ratio(
        "out of the RAM tier, microseconds more than from a file on tmpfs, p50",
        rows["engine-ram"]["p50_us"] - rows["engine"]["p50_us"],
        "at most 4",
    )
