# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings that cannot be, also by what else is set or by what the host has."""

from __future__ import annotations

import pwd
from typing import TYPE_CHECKING

from vmmswap import config_values as values
from vmmswap.errors import NotSupportedError

if TYPE_CHECKING:
    from vmmswap.config import Config, Origins


class ConfigError(NotSupportedError):
    """A configuration file says what cannot be: the message begins with FILE:LINE."""


def uid_of(user: str) -> int:
    """The uid of a user's name, or of a number. ConfigError if this host has no such user."""
    if user.isdigit():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ConfigError(f"Owner={user}: this host has no such user") from None


def check_tiers(settings: Config, origins: Origins) -> None:
    has_ram_tier = not values.is_nothing(settings.ram_tier_max)
    if not has_ram_tier and not settings.has_disk_tier:
        where = ", ".join(origins[attribute] for attribute in ("ram_tier_max", "disk_tier_max"))
        raise ConfigError(
            f"{where}: RamTierMax=0 and DiskTierMax=0 leave no place for pages that are out: raise one"
        )
    if has_ram_tier and settings.compression != settings.ram_tier_compression:
        raise ConfigError(
            f"{origins['disk_tier_compression']}: pages go to disk as they are on RAM: set"
            f" RamTierCompression={settings.disk_tier_compression} too, or RamTierMax=0"
        )
