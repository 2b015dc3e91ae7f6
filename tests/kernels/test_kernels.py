# SPDX-License-Identifier: GPL-2.0-or-later
"""The suite on kernels that users have and this machine does not: a part of it, and all with KERNELS=whole.

Each job is a boot of its own, where host-wide settings are set as no test on this machine may. What a kernel
lacks is skipped inside with its reason, which is shown; what may not be skipped on which kernel is said here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.guests import qemu
from tests.kernels import kernel
from tests.kernels.jobs import LEFT_OUT, LONG, NO_KERNEL, WHOLE, Job, engine_boots, jobs
from tests.kernels.kernel import ROOT, VERSIONS, Result
from tests.support.programs import built

AT_ONCE = 2
JOBS = jobs()


def each(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("job", [name for name, job in JOBS.items() if job.kind == kind])


@pytest.fixture(scope="module")
def booted(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], Future[Result]]]:
    """The jobs of all tests that were selected, two at a time."""
    if reason := kernel.missing():
        pytest.skip(reason)
    _build()
    qemu.prepared()  # for the next line
    qemu.accelerator()  # once, before there are threads
    selected = [item.callspec.params for item in request.session.items if _has_a_job(item)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            (one["job"], one["version"]): pool.submit(_run, one["job"], one["version"])
            for one in selected
            if not kernel.prepare(one["version"])
        }
        pool.shutdown(cancel_futures=True)


def _build() -> None:
    """What each boot would make for itself otherwise, emulated."""
    subprocess.run(["make", "-s", "-C", str(ROOT / "engine"), "programs", "VARIANTS=gcc"], check=True)
    subprocess.run([sys.executable, "-m", "compileall", "-q", "vmmswap", "tests"], cwd=ROOT, check=True)
    for source in (ROOT / "tests/support").glob("*.c"):
        built(source)


def _has_a_job(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and "booted" in item.fixturenames


def _run(name: str, version: str) -> Result:
    job: Job = JOBS[name]

    def show(line: str) -> None:
        print(f"{version} {name}: {line}", flush=True)

    return kernel.run(version, job.script, limit_s=job.limit_s, hear=show if WHOLE else None)


def outcome(booted: dict[tuple[str, str], Future[Result]], job: str, version: str) -> Result:
    if reason := kernel.prepare(version):
        pytest.skip(reason)
    result = booted[job, version].result()
    print(f"{version} {job}: took {result.took_s:.0f} s" if WHOLE else result)
    assert result.status == 0, str(result)
    return result


def test_each_program_of_the_engine_is_in_one_boot() -> None:
    booted = [name for names in engine_boots().values() for name in names]
    there = {path.stem.removeprefix("test_") for path in (ROOT / "engine/tests").glob("test_*.c")}
    assert sorted([*booted, *NO_KERNEL]) == sorted(there)
    assert set(LONG) <= set(booted)


def test_what_is_left_out_is_there() -> None:
    for path, name in (test.split("::") for test in LEFT_OUT):
        assert f"\ndef {name}(" in (ROOT / path).read_text()


@each("engine")
@pytest.mark.parametrize("version", VERSIONS)
def test_the_engine(booted, version, job) -> None:
    result = outcome(booted, job, version)
    assert "FAIL" not in result.output


@each("huge")
@pytest.mark.parametrize("version", VERSIONS)
def test_where_shared_memory_has_large_folios(booted, version, job) -> None:
    output = outcome(booted, job, version).output
    assert "ok    pins, shmem_enabled=always" in output
    # The one test that needs it is not skipped.
    denied = next(line for line in output.splitlines() if "collapse, shmem_enabled=deny" in line)
    assert "deny_is_for_all" not in denied


@each("monitor")
@pytest.mark.parametrize("version", VERSIONS)
def test_the_monitor(booted, version, job) -> None:
    output = outcome(booted, job, version).output
    assert " passed" in output
    if version == "6.1":
        assert "this kernel leaves holes as they are" not in output


@each("demo")
@pytest.mark.parametrize("version", VERSIONS)
def test_the_demo(booted, version, job) -> None:
    assert "every byte verified" in outcome(booted, job, version).output
