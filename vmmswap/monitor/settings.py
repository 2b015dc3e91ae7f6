# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration that a monitor runs with, where each value stands, and what can be read again at run
time.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmmswap import config
from vmmswap.config import KEYS, Config, Key, Origins
from vmmswap.config_checks import ConfigError
from vmmswap.log import fields
from vmmswap.message_ids import CONFIGURATION_ERROR

_log = logging.getLogger("vmmswap.monitor")

Row = tuple[str, str, str, str]  # key, value, where it stands, the value that a restart would bring


class Settings:
    """The settings of one monitor. reload() changes `current`, and only keys that may change while a VM is
    served.
    """

    def __init__(self, name: str, path: Path | None, current: Config, origins: Origins) -> None:
        """path: the file to read, None: the host's."""
        self._name = name
        self._path = path
        self.current = current
        self._origins = origins

    def reload(self) -> bool:
        """Read the files again, and apply what can be applied now. False if they have a mistake; then nothing
        changes. Reads files: not for the event loop.
        """
        try:
            found, origins = self._read()
        except ConfigError as error:
            _log.error(
                "%s; the configuration stays as it was", error.message, extra=fields("", CONFIGURATION_ERROR)
            )
            return False
        before = self.current
        changed = [key for key in KEYS if getattr(found, key.attribute) != getattr(before, key.attribute)]
        applied = {key.attribute: getattr(found, key.attribute) for key in changed if key.may_reload}
        self.current = replace(before, **applied)
        self._origins |= {key.attribute: origins.get(key.attribute, "") for key in KEYS if key.may_reload}
        _log.info("the configuration was read again: %s", _summary(found, changed))
        return True

    def rows(self) -> list[Row]:
        """All keys, in the order of the table. Reads files: not for the event loop."""
        try:
            found, _ = self._read()
        except ConfigError:
            found = self.current
        return [
            (
                key.name,
                key.text(getattr(self.current, key.attribute)),
                self._origins.get(key.attribute) or config.DEFAULT_ORIGIN,
                _pending(key, getattr(self.current, key.attribute), getattr(found, key.attribute)),
            )
            for key in KEYS
        ]

    def _read(self) -> tuple[Config, Origins]:
        return config.load_with_origins(self._name, None if self._path is None else [self._path])


def _pending(key: Key, current: Any, found: Any) -> str:  # noqa: ANN401  the value of any key
    return key.text(found) if found != current else ""


def _summary(found: Config, changed: list[Key]) -> str:
    if not changed:
        return "nothing has changed"
    return ", ".join(
        f"{key.name}={key.text(getattr(found, key.attribute))}"
        + ("" if key.may_reload else " (applies after a restart)")
        for key in changed
    )
