# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/first-hour.md, run in a machine: by a test, and by tools/transcript."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.guests.qemu import wait_set_up
from tests.support import doc_runner, documents
from tests.support.doc_runner import Command, File, Typist
from tests.support.machine import Machine

DOCUMENT = documents.ROOT / "docs" / "first-hour.md"


def prepare(machine: Machine) -> None:
    """What hosts of VMs have, and a machine for tests has not."""
    machine.sh("groupadd --force --system kvm")
    # There is no udev in a container to follow the rule that was installed.
    machine.sh("chgrp vmmswap /dev/userfaultfd; chmod 0660 /dev/userfaultfd")


def start_domain(machine: Machine) -> None:
    """What libvirt has done when it calls the hook: QEMU runs in its sandbox, and a file has its pid."""
    qemu = (
        "/usr/bin/qemu-system-x86_64 -name guest=web -display none -accel tcg -m 256M"
        " -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
        " -object memory-backend-memfd,id=pc.ram,size=256M,share=on,prealloc=on"
        " -machine q35,memory-backend=pc.ram -qmp unix:/run/libvirt/qemu/web.qmp,server=on,wait=off"
    )
    machine.sh(
        "id libvirt-qemu || useradd --system libvirt-qemu; install -d -o libvirt-qemu /run/libvirt/qemu"
    )
    machine.spawn(f"exec {qemu}", unit="libvirt-web.service", user="libvirt-qemu")
    wait_set_up(machine.path("/run/libvirt/qemu/web.qmp"))
    pid = machine.unit("libvirt-web.service", "MainPID")["MainPID"]
    machine.path("/run/libvirt/qemu/web.pid").write_text(f"{pid}\n")


def run(machine: Machine, check: Callable[[Command], None] | None = None) -> dict[str, Typist]:
    """Everything that the document says, in its order: what was typed, by heading. `check` is called after
    each command.
    """
    prepare(machine)
    headings = re.split(r"^## (.*)$", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]
    sections = {
        title: (Typist(machine), text) for title, text in zip(headings[::2], headings[1::2], strict=True)
    }
    try:
        for typist, text in sections.values():
            for step in doc_runner.fenced(text):
                if isinstance(step, File):
                    typist.write(step)
                    continue
                if step.line.startswith("/etc/libvirt/hooks/qemu "):
                    start_domain(machine)
                typist.type(step)
                if check:
                    check(step)
    finally:
        machine.run("systemctl", "stop", "libvirt-web.service", check=False)
    return {title: typist for title, (typist, _text) in sections.items()}
