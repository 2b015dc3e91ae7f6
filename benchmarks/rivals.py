# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs of the benchmark programs and of dd, interleaved so that a noisy minute hits all rivals alike."""

from __future__ import annotations

import functools
import json
import re
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "benchmarks"
SWAP_IN_PAUSE_S = 600

Figures = dict[str, float]
Runs = dict[str, list[Figures]]


@functools.cache
def compile_program(name: str, tree: Path = ROOT) -> Path:
    """Compile a tree's benchmarks/NAME.c with its engine, as in a release, and return the program."""
    folder = tree / BUILD.relative_to(ROOT)
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    sources = sorted(str(path) for path in (tree / "engine/src").rglob("*.c"))
    more = ("benchmarks/contents.c", "guest/content.c", "engine/planted/mover_thread.c")
    sources += [str(tree / path) for path in more if (tree / path).exists()]
    subprocess.run(
        [
            *("gcc", "-O2", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-pthread"),
            *(
                f"-I{tree}/engine/src",
                f"-iquote{tree}/guest",
                str(tree / "benchmarks" / f"{name}.c"),
                *sources,
            ),
            *("-lxxhash", "-llz4", "-lcrypto", "-o", str(program)),
        ],
        check=True,
    )
    return program


def run_json(command: Sequence[str | Path]) -> Figures:
    """Run a program that prints one JSON object of figures."""
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=SWAP_IN_PAUSE_S)
    figures: Any = json.loads(done.stdout)
    return {key: float(value) for key, value in figures.items()}


def dd(folder: Path, mib: int) -> Figures:
    """MiB/s of dd with O_DIRECT in 2 MiB blocks: a new incompressible file, written and read back."""
    source, target = Path("/dev/shm/vmmswap-dd"), folder / "vmmswap-dd"  # noqa: S108 - removed below
    seconds: Figures = {}
    try:
        subprocess.run(
            ["dd", "if=/dev/urandom", f"of={source}", "bs=2M", f"count={mib // 2}", "status=none"], check=True
        )
        for key, args in {
            "write_mib_per_s": (f"if={source}", f"of={target}", "oflag=direct"),
            "read_mib_per_s": (f"if={target}", "of=/dev/null", "iflag=direct"),
        }.items():
            done = subprocess.run(
                ["dd", *args, "bs=2M"], check=True, capture_output=True, text=True, env={"LC_ALL": "C"}
            )
            took = re.search(r"copied, ([0-9.e-]+) s", done.stderr)
            assert took
            seconds[key] = mib / float(took[1])
    finally:
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    return seconds


def in_turns(rivals: dict[str, Callable[[], Figures]], rounds: int) -> Runs:
    """All figures of each rival, one run of each rival after the other in each round."""
    runs: Runs = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, rival in rivals.items():
            runs[name].append(rival())
    return runs


def medians(runs: Runs) -> dict[str, Figures]:
    """The median over all rounds of each figure."""
    return {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for name, found in runs.items()
    }


def interleaved(rivals: dict[str, Callable[[], Figures]], rounds: int) -> dict[str, Figures]:
    """The medians of rivals that ran in turns."""
    return medians(in_turns(rivals, rounds))


def paired(runs: Runs, over: tuple[str, str], under: tuple[str, str]) -> float:
    """The median over all rounds of one (rival, figure) divided by another of the same round.

    What slows a whole round down hits both.
    """
    return statistics.median(
        left[over[1]] / right[under[1]] for left, right in zip(runs[over[0]], runs[under[0]], strict=True)
    )


def table(title: str, rows: dict[str, Figures]) -> None:
    """Print the rivals as the rows of a table in Markdown."""
    columns = list(dict.fromkeys(key for figures in rows.values() for key in figures))
    print(f"\n### {title}\n")
    print("| | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for name, figures in rows.items():
        cells = [f"{figures[key]:.4g}" if key in figures else "" for key in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")


def ratio(what: str, value: float, target: str) -> None:
    """Print a ratio between rivals of the same run, with what we want of it."""
    print(f"\n- {what}: **{value:.2f}** (wanted: {target})")
