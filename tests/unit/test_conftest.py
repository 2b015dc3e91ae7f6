# SPDX-License-Identifier: GPL-2.0-or-later
"""tests/conftest.py turns unexpected skips in CI into failures: shown on a small suite of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITE = """\
import pytest

def test_runs():
    pass

@pytest.mark.skip(reason="no such tool: frobnicate")
def test_marked():
    raise AssertionError

def test_called():
    pytest.skip("needs root")

@pytest.fixture
def thing():
    pytest.skip("needs root")

def test_fixture(thing):
    raise AssertionError

@pytest.mark.xfail(strict=True)
def test_expected_failure():
    raise AssertionError
"""
WHOLE_MODULE = 'import pytest\n\npytest.skip("no KVM here", allow_module_level=True)\n'


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    tests = tmp_path / "tests"
    shutil.copytree(
        ROOT / "tests" / "support", tests / "support", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "tests" / "conftest.py", tests)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tests / "expected-skips").write_text("# none\n")
    (tests / "test_suite.py").write_text(SUITE)
    return tmp_path


def run(suite: Path, ci: str | None) -> tuple[int, str]:
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    if ci is not None:
        environment["CI"] = ci
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=suite, env=environment, check=False, capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize("ci", [None, "", "false"])
def test_skips_are_counted_outside_ci(suite: Path, ci: str | None) -> None:
    status, output = run(suite, ci)
    assert status == 0, output
    assert "1 passed, 3 skipped, 1 xfailed" in output
    assert "    2  needs root" in output
    assert "    1  no such tool: frobnicate" in output


def test_unexpected_skips_fail_in_ci(suite: Path) -> None:
    status, output = run(suite, "true")
    assert status == 1, output
    assert "was skipped, which tests/expected-skips does not expect in CI: needs root" in output
    assert "1 passed" in output
    assert "skipped" not in output.splitlines()[-1]


def test_expected_skips_pass_in_ci(suite: Path) -> None:
    (suite / "tests" / "expected-skips").write_text(
        "tests/test_suite.py::test_marked no such tool: *\n# a comment\n\ntests/test_suite.py::* needs root\n"
    )
    status, output = run(suite, "true")
    assert status == 0, output
    assert "1 passed, 3 skipped, 1 xfailed" in output


def test_the_reason_counts_too(suite: Path) -> None:
    (suite / "tests" / "expected-skips").write_text("tests/test_suite.py::* no such tool: *\n")
    status, output = run(suite, "true")
    assert status == 1, output
    assert "1 skipped" in output


def test_a_module_skipped_as_a_whole_fails_in_ci(suite: Path) -> None:
    (suite / "tests" / "test_suite.py").write_text(WHOLE_MODULE)
    assert run(suite, None)[0] in (0, 5)  # 5: nothing ran
    status, output = run(suite, "true")
    assert status not in (0, 5), output
    assert "does not expect in CI: no KVM here" in output
