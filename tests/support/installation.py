# SPDX-License-Identifier: GPL-2.0-or-later
"""A clean copy of this source tree, and `make` in it, with this tree's .venv and downloaded dependencies."""

import os
import subprocess
from pathlib import Path

from tests.support.machine import Machine

ROOT = Path(__file__).parents[2]
INSIDE = "/srv/vmmswap"  # where tests bind the copy into a machine
_VENV = ROOT / ".venv"
SETTINGS = (f"VENV={_VENV}", f"BUILD_VENV={_VENV}", f"WHEELHOUSE={ROOT / 'build' / 'wheelhouse'}")


def copy_tree(destination: Path) -> None:
    """All files but those that git ignores, changed or not."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]
    archive = ["tar", "--null", "--files-from=-", "--create", "--file=-"]
    with subprocess.Popen(archive, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tar:
        assert tar.stdin is not None
        extract = subprocess.Popen(["tar", "--extract", "--directory", destination], stdin=tar.stdout)
        tar.stdin.write("\0".join(names).encode())
        tar.stdin.close()
        assert extract.wait() == 0
    assert tar.returncode == 0


def make(tree: Path, *arguments: str) -> str:
    """Run make here; its output. Fails the test with the output if make fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--silent", *arguments, *SETTINGS],
        cwd=tree,
        env=environment,
        check=False,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f"make {' '.join(arguments)}:\n{done.stdout}"
    return done.stdout


def missing_dependencies(tree: Path) -> list[str]:
    """What make would download there, because the distribution's packages are not installed."""
    command = [tree / "tools/missing-dependencies", "/usr/lib/python3/dist-packages"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def make_inside(machine: Machine, *arguments: str) -> str:
    """Run make in the machine, in the copy that is bound to INSIDE."""
    command = " ".join(["make", "--silent", "-C", INSIDE, *arguments, *SETTINGS])
    return machine.sh(f"{command} 2>&1", timeout_s=600).stdout
