# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted machine with vmmswapd as shipped: unit, bus policy, activation, polkit actions."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dbus_next
import pytest

from tests.support.bus import REPOSITORY
from tests.support.machine import Machine
from vmmswap.names import HOST_INTERFACE, HOST_PATH, bus_name_of

HOST = ("org.vmmswap", HOST_PATH, HOST_INTERFACE)

SITE = Path(dbus_next.__file__).parents[1]

# vmmswapd runs in its unit's sandbox, which hides /tmp and /home, where this tree may be.
INSTALL = f"""
set -e
cd {REPOSITORY}
install -Dm644 -t /usr/share/dbus-1/system.d dbus/org.vmmswap.conf
install -Dm644 -t /usr/share/dbus-1/system-services dbus/org.vmmswap.service
install -Dm644 -t /usr/share/polkit-1/actions dbus/org.vmmswap.policy
install -Dm644 -t /etc/systemd/system systemd/vmmswapd.service systemd/vmmswap.slice systemd/vmmswap@.s*
systemd-sysusers $PWD/systemd/vmmswap.sysusers.conf
systemd-tmpfiles --create $PWD/systemd/vmmswap.tmpfiles.conf
mkdir /opt/vmmswapd
cp -r vmmswap {SITE}/dbus_next {SITE}/systemd /opt/vmmswapd
cat >/usr/bin/vmmswapd <<'END'
#!/bin/sh
PYTHONPATH=/opt/vmmswapd exec /usr/bin/python3 -m vmmswap.host.main "$@"
END
chmod 755 /usr/bin/vmmswapd
systemctl daemon-reload
busctl call org.freedesktop.DBus / org.freedesktop.DBus ReloadConfig
"""


@pytest.fixture(scope="module")
def installed(machine: Machine) -> Machine:
    if machine.sh("test -x /usr/lib/polkit-1/polkitd", check=False).returncode != 0:
        pytest.skip("needs polkitd")
    machine.sh(INSTALL)
    return machine


@contextmanager
def recording_vm(machine: Machine, name: str, uid: int = 65534) -> Iterator[str]:
    """A VM on the machine's system bus; its unit's name."""
    unit = machine.spawn(
        f"cd {REPOSITORY} && exec {sys.executable} -m tests.support.recording_vm {name} "
        f"unix:path=/run/dbus/system_bus_socket {uid}"
    )
    machine.wait_for(f"{name} on the bus", lambda: has_owner(machine, bus_name_of(name)))
    yield unit
    machine.run("systemctl", "stop", unit, check=False)


def has_owner(machine: Machine, name: str) -> bool:
    return bool(
        machine.call(
            "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "NameHasOwner", "s", name
        )[0]
    )
