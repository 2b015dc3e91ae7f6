# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/first-hour.md, run in a machine: by a test, and by tools/transcript."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Callable

from tests.support import doc_runner, documents
from tests.support.doc_runner import Command, File, Typist
from tests.support.machine import Machine

_PACKAGES = documents.ROOT / "build" / "libvirt"
DOCUMENT = documents.ROOT / "docs" / "first-hour.md"


@functools.cache
def missing() -> str:
    """Fetch libvirt's packages; why that failed, or ""."""
    for tool in ("apt-get", "dpkg", "qemu-system-x86_64"):
        if not shutil.which(tool):
            return f"needs {tool}"
    _PACKAGES.mkdir(parents=True, exist_ok=True)
    options = ("--quiet", "--yes", "--no-install-recommends", "--download-only", "--reinstall")
    names = ("libvirt-clients", "libvirt-daemon-driver-qemu", "libvirt-daemon-system")
    fetch = ["apt-get", *options, f"--option=Dir::Cache::archives={_PACKAGES}", "install", *names]
    for command in (fetch, ["apt-get", "--quiet", "update"], fetch):
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if command is fetch and done.returncode == 0:
            return ""
    return f"needs libvirt's packages: {done.stderr.strip()[-300:]}"


def prepare(machine: Machine) -> None:
    """What hosts of VMs have, and a machine for tests has not. libvirt is installed in there alone."""
    machine.sh(f"dpkg --install {_PACKAGES}/*.deb", timeout_s=300)
    machine.sh("groupadd --force --system kvm")
    # There is no udev in a container to follow the rule that was installed.
    machine.sh("chgrp vmmswap /dev/userfaultfd; chmod 0660 /dev/userfaultfd")


def run(machine: Machine, check: Callable[[Command], None] | None = None) -> dict[str, Typist]:
    """Everything that the document says, in its order: what was typed, by heading. `check` is called after
    each command.
    """
    prepare(machine)
    headings = re.split(r"^## (.*)$", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]
    sections = {
        title: (Typist(machine), text) for title, text in zip(headings[::2], headings[1::2], strict=True)
    }
    for typist, text in sections.values():
        for step in doc_runner.fenced(text):
            if isinstance(step, File):
                typist.write(step)
                continue
            typist.type(step)
            if check:
                check(step)
    return {title: typist for title, (typist, _text) in sections.items()}
