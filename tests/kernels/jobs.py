# SPDX-License-Identifier: GPL-2.0-or-later
"""What is run on other kernels: a part of the suite, and all that depends on the kernel with KERNELS=whole.

A job is one boot with a limit of its own. The whole is cut into many, so that one that stands still ends in a
bounded time and takes no others with it, and so that each can be run alone (pytest -k).
"""

from __future__ import annotations

import dataclasses
import os

from tests.kernels.kernel import ROOT

WHOLE = os.environ.get("KERNELS") == "whole"
THP = "/sys/kernel/mm/transparent_hugepage"

# On every kernel in CI; the rest takes minutes under emulation.
ENGINE = ("collapse", "given_up", "parity", "pins", "registration", "restore", "storage")
# Of the monitor: hand-off, attach, kill and restart, and who listens on a socket.
MONITOR = (
    "tests/integration/test_huge_pages.py",
    "tests/integration/test_monitor_restart.py::test_killed_with_memory_out",
    "tests/integration/test_attach_monitor.py::test_swapped_out_and_in_while_it_works",
    "tests/integration/test_monitor_qmp.py::test_a_socket_of_another_process_is_not_used",
)

# Arithmetic, tables and locks in memory of the test's own: no kernel does any of it in another way.
NO_KERNEL = (
    *("address_space", "budget", "failpoint", "fetch", "hash", "near_reads", "notice", "page", "page_map"),
    *("slots", "stats", "trace"),
)
# Each takes as long as many others, so it has a boot of its own.
LONG = ("log", "races", "tiered_races")
BOOTS = 6  # for all others
# What has little to do with the kernel is left out: messages, QMP, configuration.
WHOLE_MONITOR = (
    "tests/integration/test_huge_pages.py",
    "tests/integration/test_monitor.py",
    "tests/integration/test_monitor_restart.py",
    "tests/integration/test_attach.py",
    "tests/integration/test_attach_monitor.py",
    "tests/integration/test_add_process.py",
    "tests/integration/test_handoff_uffd.py",
    "tests/chaos/test_keeper.py",
)
# So is this of the files above: command lines, names on the bus.
LEFT_OUT = tuple(
    f"tests/integration/test_monitor.py::test_{name}"
    for name in (
        *("wrong_names_and_options", "swap_directories_that_will_not_do", "sockets_that_will_not_do"),
        *("no_bus", "a_name_that_is_owned_already", "bad_configuration"),
        "failpoints_are_listed_by_the_build_that_has_them",
    )
)


@dataclasses.dataclass(frozen=True)
class Job:
    """kind: engine, huge, monitor or demo. script: for kernel.run()."""

    kind: str
    script: str
    limit_s: float


def jobs() -> dict[str, Job]:
    """Each job by its name."""
    if WHOLE:
        engine = {f"engine-{name}": _engine(names) for name, names in engine_boots().items()}
        monitor = {f"monitor-{_stem(path)}": _monitor(path) for path in WHOLE_MONITOR}
    else:
        engine = {"engine": _engine(ENGINE)}
        monitor = {"monitor": _monitor(*MONITOR)}
    limit_s = 3600.0 if WHOLE else 1200.0
    scripts = {"engine": engine, "huge": {"huge": _huge()}, "monitor": monitor, "demo": {"demo": _demo()}}
    return {
        name: Job(kind, script, limit_s) for kind, named in scripts.items() for name, script in named.items()
    }


def engine_boots() -> dict[str, list[str]]:
    """The test programs of each boot of the whole, by the boot's name."""
    programs = sorted(path.stem.removeprefix("test_") for path in (ROOT / "engine/tests").glob("test_*.c"))
    short = [name for name in programs if name not in (*NO_KERNEL, *LONG)]
    boots = {name: [name] for name in LONG}
    size = -(-len(short) // BOOTS)
    for start in range(0, len(short), size):
        names = short[start : start + size]
        boots[f"{names[0]}-to-{names[-1]}"] = names
    return boots


def _stem(path: str) -> str:
    return path.rpartition("/")[2].removeprefix("test_").removesuffix(".py")


def _engine(names: list[str] | tuple[str, ...]) -> str:
    runs = [f"tests/run-one {name} build/gcc/test_{name} || failed=1" for name in names]
    # Emulated, a kill takes a second; what chaos reaches by chance does not depend on the kernel.
    return "\n".join(["cd engine; export CHAOS_KILLS=20", *runs, "exit $failed"])


def _huge() -> str:
    """Where shared memory gets large folios by itself, and where nothing may."""
    lines = ["cd engine"]
    for setting in ("always", "within_size", "force", "deny") if WHOLE else ("always", "deny"):
        lines += [f"echo {setting} >{THP}/shmem_enabled", *_pins_and_collapse(f"shmem_enabled={setting}")]
    sizes = "64kB 2048kB" if WHOLE else "64kB"
    lines += [
        f"echo never >{THP}/shmem_enabled",
        f"for size in {sizes}; do",
        f"if [ -e {THP}/hugepages-$size/shmem_enabled ]; then",
        f"echo always >{THP}/hugepages-$size/shmem_enabled",
        *_pins_and_collapse("$size=always"),
        f"echo never >{THP}/hugepages-$size/shmem_enabled",
        "fi; done",
        "exit $failed",
    ]
    return "\n".join(lines)


def _pins_and_collapse(title: str) -> list[str]:
    return [
        f'tests/run-one "pins, {title}" build/gcc/test_pins || failed=1',
        f'tests/run-one "collapse, {title}" build/gcc/test_collapse || failed=1',
    ]


def _monitor(*chosen: str) -> str:
    how = "-v -o console_output_style=times" if WHOLE else "-q"  # a line for each test as it ends
    left_out = [f"--deselect {name}" for name in LEFT_OUT if name.partition("::")[0] in chosen]
    return " ".join([".venv/bin/pytest -p no:cacheprovider -rs --color=no", how, *left_out, *chosen])


def _demo() -> str:
    return ".venv/bin/vmmswapctl demo --size 64"
