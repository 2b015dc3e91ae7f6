# SPDX-License-Identifier: GPL-2.0-or-later
"""The errors that cross an interface of vmmswap. Each class has the D-Bus name that callers see."""

from __future__ import annotations

import errno
from typing import ClassVar

PREFIX = "org.vmmswap.Error."


class VmmswapError(Exception):
    """Base of all errors that a caller sees.

    The message says what was wrong, with the value, and what to do. `dbus_name` is what crosses the bus and
    the hand-off socket.
    """

    dbus_name: ClassVar[str] = PREFIX + "Internal"

    @property
    def message(self) -> str:
        return str(self)


class InternalError(VmmswapError):
    """A bug of ours, apart from any misuse."""


class NoSuchVMError(VmmswapError):
    dbus_name = PREFIX + "NoSuchVM"


class InvalidNameError(VmmswapError):
    dbus_name = PREFIX + "InvalidName"


class InvalidRegionError(VmmswapError):
    dbus_name = PREFIX + "InvalidRegion"


class BusyError(VmmswapError):
    dbus_name = PREFIX + "Busy"


class NotSupportedError(VmmswapError):
    dbus_name = PREFIX + "NotSupported"


class AccessDeniedError(VmmswapError):
    dbus_name = PREFIX + "AccessDenied"


class NoSpaceError(VmmswapError):
    dbus_name = PREFIX + "NoSpace"


class StorageFailedError(VmmswapError):
    dbus_name = PREFIX + "StorageFailed"


class PagesLostError(VmmswapError):
    dbus_name = PREFIX + "PagesLost"


class ProtocolError(VmmswapError):
    dbus_name = PREFIX + "ProtocolError"


ALL: tuple[type[VmmswapError], ...] = (
    InternalError,
    NoSuchVMError,
    InvalidNameError,
    InvalidRegionError,
    BusyError,
    NotSupportedError,
    AccessDeniedError,
    NoSpaceError,
    StorageFailedError,
    PagesLostError,
    ProtocolError,
)

BY_DBUS_NAME: dict[str, type[VmmswapError]] = {cls.dbus_name: cls for cls in ALL}

# What an errno from the engine means to a caller. An errno that is not here is a bug of ours: a test compares
# this with the errors that the engine's sources name.
BY_ERRNO: dict[int, type[VmmswapError]] = {
    errno.ENOSPC: NoSpaceError,
    errno.EDQUOT: NoSpaceError,
    errno.EFBIG: NoSpaceError,
    errno.EIO: StorageFailedError,
    errno.EBADMSG: StorageFailedError,
    errno.EROFS: StorageFailedError,
    errno.EPROTO: StorageFailedError,  # what a predecessor left cannot be read
    errno.ENOENT: StorageFailedError,  # the swap directory is not there
    errno.ENOTDIR: StorageFailedError,
    errno.ESTALE: StorageFailedError,
    errno.ENXIO: StorageFailedError,
    errno.ENODEV: StorageFailedError,
    errno.EINVAL: InvalidRegionError,
    errno.EBUSY: BusyError,
    errno.EAGAIN: BusyError,  # the VMM is in the middle of something; later it may work
    errno.ETIMEDOUT: BusyError,
    errno.ESRCH: NoSuchVMError,
    errno.E2BIG: NotSupportedError,
    errno.ENOTSUP: NotSupportedError,
    errno.ENOSYS: NotSupportedError,
    errno.EPERM: AccessDeniedError,
    errno.EACCES: AccessDeniedError,
    errno.ENOMEM: NoSpaceError,
    errno.EMFILE: NoSpaceError,
    errno.ENFILE: NoSpaceError,
    errno.ECANCELED: NoSuchVMError,  # the engine is stopping
}


def from_errno(code: int, message: str) -> VmmswapError:
    """The error for a positive errno of the engine, with the engine's own message."""
    return BY_ERRNO.get(code, InternalError)(message)
