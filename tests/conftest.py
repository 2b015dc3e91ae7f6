# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures for all tests, and the rule that in CI only the expected skips are skips.

With CI=true in the environment a skipped test that is not listed in tests/expected-skips counts as failed:
a tool or a right that CI should have and lacks must not hide tests. The summary counts the skips by reason.
"""

import collections
import fnmatch
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support import installation
from tests.support.machine import Machine

EXPECTED_SKIPS = Path(__file__).with_name("expected-skips")

# How long an example takes says how busy this machine is, and nothing of the code.
hypothesis.settings.register_profile("vmmswap", deadline=None)
hypothesis.settings.load_profile("vmmswap")

# An installed vmmswap is compiled. Where Python may not write bytecode, each monitor of the tests would
# compile all of its modules anew, which takes a third of its start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell that runs the suite in the background has it ignore Ctrl-C, and so all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A booted machine, shared by a module's tests: none may depend on what the others did in it."""
    if reason := Machine.missing():
        pytest.skip(reason)
    with Machine() as booted:
        yield booted


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree as a fresh clone has it, built: `make install` in it needs no network."""
    copy = tmp_path_factory.mktemp("tree")
    installation.copy_tree(copy)
    installation.make(copy, "build")
    return copy


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def expected_skips(text: str) -> list[tuple[str, str]]:
    """Pairs of patterns (fnmatch) for node id and reason, from lines `NODEID-PATTERN REASON-PATTERN`."""
    lines = (line.strip() for line in text.splitlines())
    pairs = (line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    return [(node_id, reason) for node_id, reason in pairs]


def is_expected(node_id: str, reason: str) -> bool:
    return any(
        fnmatch.fnmatchcase(node_id, node_pattern) and fnmatch.fnmatchcase(reason, reason_pattern)
        for node_pattern, reason_pattern in expected_skips(EXPECTED_SKIPS.read_text())
    )


def reject_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI make an unexpected skip a failure."""
    if not report.skipped or hasattr(report, "wasxfail") or not isinstance(report.longrepr, tuple):
        return
    reason = str(report.longrepr[2]).removeprefix("Skipped: ")
    if in_ci() and not is_expected(report.nodeid, reason):
        report.outcome = "failed"
        report.longrepr = (
            f"{report.nodeid} was skipped, which tests/expected-skips does not expect in CI: {reason}"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    reject_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    reject_skip(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons: collections.Counter[str] = collections.Counter()
    for report in terminalreporter.stats.get("skipped", []):
        if isinstance(report.longrepr, tuple):
            reasons[str(report.longrepr[2]).removeprefix("Skipped: ")] += 1
    if reasons:
        terminalreporter.section("skipped tests by reason")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:5}  {reason}")
