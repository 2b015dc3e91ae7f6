# SPDX-License-Identifier: GPL-2.0-or-later
"""The hand-off sockets, and through them whose each name is.

A socket that vmmswapd makes for a user is his file, of mode 0600, so that nobody else connects; monitors and
the next vmmswapd read its owner from it (monitor/ownership.py). A socket that the administrator's unit made
is root's, 0660, for the group vmmswap. A name that the configuration gives to somebody by Owner= is his,
whatever its socket says.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vmmswap import config
from vmmswap.config_checks import uid_of
from vmmswap.errors import AccessDeniedError, BusyError, NotSupportedError
from vmmswap.host.units import Units
from vmmswap.names import LOG_DIR, RUN_DIR, STATE_DIR, socket_path_of

log = logging.getLogger(__name__)

_PREPARED_MODE = 0o600
# The same to who connects, and a mark for the next vmmswapd: this socket goes with its VM.
_FOR_ATTACH_MODE = 0o200
_GROUP_MODE = 0o660  # as the unit makes it


def socket_unit(name: str) -> str:
    return f"vmmswap@{name}.socket"


def monitor_unit(name: str) -> str:
    return f"vmmswap@{name}.service"


def reason_in_journal(name: str) -> str:
    return f"`journalctl --unit={monitor_unit(name)}` has more"


def configured_owner(name: str) -> int | None:
    """Owner= of this VM. ConfigError, as the VM's monitor has it, if the configuration has a mistake
    or names no user: nobody can tell then whose a VM is.
    """
    owner = config.load(name).owner
    return uid_of(owner) if owner else None


class Sockets:
    """Makes, gives and removes them. Callers take turns for each name."""

    def __init__(self, units: Units) -> None:
        self._units = units
        self._being_made: Counter[int] = Counter()  # by uid

    def holder(self, name: str) -> int | None:
        """Whose socket stands there, None if there is none."""
        try:
            return _status_of(socket_path_of(name)).st_uid
        except OSError:
            return None

    def owner(self, name: str) -> int | None:
        """Whose this name is: by the configuration, or by a socket that was prepared. None: nobody's, or the
        administrator's for whoever is in the group.
        """
        configured = configured_owner(name)
        return configured if configured is not None else self.holder(name) or None

    async def claim(self, name: str, uid: int, *, for_attach: bool = False) -> bool:
        """Start vmmswap@NAME.socket for this uid; True if it was not there before. AccessDeniedError if the
        name is somebody else's.
        """
        if uid != 0:
            await self._check_free_for(name, uid)
        is_new = not await self._units.is_active(socket_unit(name))
        if is_new and uid != 0:
            self._check_room(uid)
        self._being_made[uid] += 1
        try:
            await self._units.start(socket_unit(name))
            self._give(name, uid, is_new=is_new, for_attach=for_attach)
        except BaseException:
            if is_new:
                await self._units.stop(socket_unit(name))
            raise
        finally:
            self._being_made[uid] -= 1
        return is_new

    async def start_monitor(self, name: str) -> None:
        """Start the VM's monitor. NotSupportedError with its own reason if it cannot start."""
        unit = monitor_unit(name)
        try:
            await self._units.start(unit)
        except NotSupportedError as error:
            service = await self._units.service(unit)
            reason = service["StatusText"] or f"exit status {service['ExecMainStatus']} ({service['Result']})"
            raise NotSupportedError(
                f"the monitor of {name!r} cannot start: {reason}; {reason_in_journal(name)}"
            ) from error

    async def has_monitor(self, name: str) -> bool:
        return await self._units.is_active(monitor_unit(name))

    async def remove(self, name: str) -> None:
        """Stop the socket and its idle monitor, and remove the directories that this leaves empty."""
        await self._units.stop(socket_unit(name))
        await self._units.stop(monitor_unit(name))
        for parent in (STATE_DIR, LOG_DIR):
            with contextlib.suppress(OSError):  # not empty: a ledger, or a log that somebody wants to read
                (parent / name).rmdir()

    async def remove_if_idle(self, name: str) -> bool:
        """The same if there is no monitor; whether there was none."""
        if await self.has_monitor(name):
            return False
        await self.remove(name)
        return True

    def is_for_attach(self, name: str) -> bool:
        """True if the socket was made only to attach to a VM."""
        return _is_for_attach(socket_path_of(name))

    def made_for_attach(self) -> list[str]:
        """The names of all such sockets."""
        return [path.stem for path in RUN_DIR.glob("*.sock") if _is_for_attach(path)]

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """Root may connect meanwhile, which without CAP_DAC_OVERRIDE only the owner of the file may."""
        path = socket_path_of(name)
        holder = self.holder(name)
        if not holder:
            yield path
            return
        os.chown(path, 0, -1, follow_symlinks=False)
        try:
            yield path
        finally:
            os.chown(path, holder, -1, follow_symlinks=False)

    async def _check_free_for(self, name: str, uid: int) -> None:
        configured, holder = configured_owner(name), self.holder(name)
        if configured == uid or (configured is None and holder == uid):
            return
        if configured is not None:
            raise AccessDeniedError(f"the VM {name!r} belongs to uid {configured}: choose another name")
        if holder:
            raise AccessDeniedError(
                f"{socket_path_of(name)} was prepared for uid {holder}: choose another name"
            )
        if holder == 0 or await self._units.is_enabled(socket_unit(name)):
            raise AccessDeniedError(
                f"{socket_unit(name)} is the administrator's: choose another name, or have Owner={uid} set"
                f" for the VM {name!r}"
            )

    def _check_room(self, uid: int) -> None:
        limit = config.load("").max_vms_per_user
        held = sum(_uid_of(path) == uid for path in RUN_DIR.glob("*.sock")) + self._being_made[uid]
        if held >= limit:
            raise BusyError(
                f"uid {uid} has {held} VMs and prepared sockets, and MaxVMsPerUser={limit}: remove one"
                " with `vmmswapctl unprepare NAME`"
            )

    def _give(self, name: str, uid: int, *, is_new: bool, for_attach: bool) -> None:
        path = socket_path_of(name)
        try:
            status = _status_of(path)
            if for_attach:
                mode = _FOR_ATTACH_MODE if is_new else stat.S_IMODE(status.st_mode)
            else:
                mode = _PREPARED_MODE if uid or status.st_uid else _GROUP_MODE
            _make_over(path, uid or status.st_uid, mode)
        except OSError as error:
            raise NotSupportedError(
                f"{socket_unit(name)} is started, yet {path}: {error.strerror}"
            ) from error


def _is_for_attach(path: Path) -> bool:
    try:
        return stat.S_IMODE(_status_of(path).st_mode) == _FOR_ATTACH_MODE
    except OSError:
        return False


def _make_over(path: Path, uid: int, mode: int) -> None:
    """Give the file away. Only the owner may change its mode, without CAP_FOWNER."""
    status = _status_of(path)
    if (status.st_uid, stat.S_IMODE(status.st_mode)) == (uid, mode):
        return
    os.chown(path, 0, -1, follow_symlinks=False)
    path.chmod(mode)
    os.chown(path, uid, -1, follow_symlinks=False)


def _status_of(path: Path) -> os.stat_result:
    return path.stat(follow_symlinks=False)


def _uid_of(path: Path) -> int:
    try:
        return _status_of(path).st_uid
    except OSError:  # gone meanwhile
        return -1
