# SPDX-License-Identifier: GPL-2.0-or-later
"""The suite on kernels that users have and this machine does not: a part of it, and all with KERNELS=whole.

Each job is a boot of its own, where host-wide settings are set as no test on this machine may. What a kernel
lacks is skipped inside with its reason, which is shown; what may not be skipped on which kernel is said here.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.guests import qemu
from tests.kernels import kernel
from tests.kernels.kernel import ROOT, VERSIONS, Result

WHOLE = os.environ.get("KERNELS") == "whole"
LIMIT_S = 7200.0 if WHOLE else 1200.0
AT_ONCE = 2
PROGRAMS = ROOT / "engine/build/gcc"
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


def engine_job() -> str:
    names = sorted(path.stem.removeprefix("test_") for path in (ROOT / "engine/tests").glob("test_*.c"))
    return _engine(names if WHOLE else ENGINE)


def _engine(names: list[str] | tuple[str, ...]) -> str:
    runs = [f"tests/run-one {name} build/gcc/test_{name} || failed=1" for name in names]
    # Emulated, a kill takes a second; what chaos reaches by chance does not depend on the kernel.
    return "\n".join(["cd engine; export CHAOS_KILLS=20", *runs, "exit $failed"])


def huge_job() -> str:
    """Where shared memory gets large folios by itself, and where nothing may."""
    lines = ["cd engine"]
    for setting in ("always", "within_size", "force", "deny") if WHOLE else ("always", "deny"):
        lines += [f"echo {setting} >{THP}/shmem_enabled", *_huge(f"shmem_enabled={setting}")]
    sizes = "64kB 2048kB" if WHOLE else "64kB"
    lines += [
        f"echo never >{THP}/shmem_enabled",
        f"for size in {sizes}; do",
        f"if [ -e {THP}/hugepages-$size/shmem_enabled ]; then",
        f"echo always >{THP}/hugepages-$size/shmem_enabled",
        *_huge("$size=always"),
        f"echo never >{THP}/hugepages-$size/shmem_enabled",
        "fi; done",
        "exit $failed",
    ]
    return "\n".join(lines)


def _huge(title: str) -> list[str]:
    return [
        f'tests/run-one "pins, {title}" build/gcc/test_pins || failed=1',
        f'tests/run-one "collapse, {title}" build/gcc/test_collapse || failed=1',
    ]


def monitor_job() -> str:
    chosen = WHOLE_MONITOR if WHOLE else MONITOR
    return f".venv/bin/pytest -p no:cacheprovider -q -rs --color=no {' '.join(chosen)}"


def demo_job() -> str:
    return ".venv/bin/vmmswapctl demo --size 64"


JOBS = {"engine": engine_job, "huge": huge_job, "monitor": monitor_job, "demo": demo_job}


@pytest.fixture(scope="module")
def booted() -> Iterator[dict[tuple[str, str], Future[Result]]]:
    """All jobs, two at a time."""
    if reason := kernel.missing():
        pytest.skip(reason)
    subprocess.run(["make", "-s", "-C", str(ROOT / "engine"), "programs", "VARIANTS=gcc"], check=True)
    qemu.prepared()  # for the next line
    qemu.accelerator()  # once, before there are threads
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            (name, version): pool.submit(kernel.run, version, job(), limit_s=LIMIT_S)
            for name, job in JOBS.items()
            for version in VERSIONS
            if not kernel.prepare(version)
        }
        pool.shutdown(cancel_futures=True)


def outcome(booted: dict[tuple[str, str], Future[Result]], job: str, version: str) -> Result:
    if reason := kernel.prepare(version):
        pytest.skip(reason)
    result = booted[job, version].result()
    print(result)
    assert result.status == 0, str(result)
    return result


@pytest.mark.parametrize("version", VERSIONS)
def test_the_engine(booted, version) -> None:
    result = outcome(booted, "engine", version)
    assert "FAIL" not in result.output


@pytest.mark.parametrize("version", VERSIONS)
def test_where_shared_memory_has_large_folios(booted, version) -> None:
    output = outcome(booted, "huge", version).output
    assert "ok    pins, shmem_enabled=always" in output
    # The one test that needs it is not skipped.
    denied = next(line for line in output.splitlines() if "collapse, shmem_enabled=deny" in line)
    assert "deny_is_for_all" not in denied


@pytest.mark.parametrize("version", VERSIONS)
def test_the_monitor(booted, version) -> None:
    output = outcome(booted, "monitor", version).output
    assert " passed" in output
    if version == "6.1":
        assert "this kernel leaves holes as they are" not in output


@pytest.mark.parametrize("version", VERSIONS)
def test_the_demo(booted, version) -> None:
    assert "every byte verified" in outcome(booted, "demo", version).output
