# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger of one VM: how many bytes were written to disk for it, by the hour, for 28 days.

A file in the VM's state directory, which is replaced as a whole: whoever dies while it is written leaves the
one before. It says up to where it has taken in the engine's counter, which outlives a monitor as the page map
does, so that a successor charges what its predecessor could not.

A ledger that is missing or damaged must not be a way to a fresh budget: it is filled as if the budget had
been used up every day. If the clock was set back, what lies in the future counts as written now.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmmswap.failpoint import reach
from vmmswap.reasons import reason_of

HOURS_KEPT = 28 * 24
HOURS_A_DAY = 25  # 24 whole ones and the one that has begun: no 24 hours in a row have more than the budget
_VERSION = 1


class DamagedError(ValueError):
    """The file is not a ledger, or not as it was written."""


@dataclass(slots=True)
class Ledger:
    """hours: bytes by the hour, counted since the epoch. counter: whose counter was charged last (that of one
    VM in one boot), and counted_bytes: up to where.
    """

    hours: dict[int, int] = field(default_factory=dict)
    counter: str = ""
    counted_bytes: int = 0

    def charge(self, counter: str, written_bytes: int, now_hour: int) -> bool:
        """Take in what the counter has grown by. False: by nothing."""
        more = written_bytes - (self.counted_bytes if counter == self.counter else 0)
        is_new = counter != self.counter
        self.counter, self.counted_bytes = counter, written_bytes
        if more:  # less than nothing: a write that had been counted before it failed
            self.hours[now_hour] = max(0, self.hours.get(now_hour, 0) + more)
        return bool(more) or (is_new and written_bytes > 0)

    def settle_clock(self, now_hour: int) -> None:
        """Forget what is too old, and bring what lies in the future to now."""
        ahead = [hour for hour in self.hours if hour > now_hour]
        if ahead:
            moved = sum(self.hours.pop(hour) for hour in ahead)
            self.hours[now_hour] = self.hours.get(now_hour, 0) + moved
        for hour in [hour for hour in self.hours if hour <= now_hour - HOURS_KEPT]:
            del self.hours[hour]

    def written_today(self, now_hour: int) -> int:
        """Bytes written in the last 24 hours, in whole hours."""
        return sum(size for hour, size in self.hours.items() if now_hour - HOURS_A_DAY < hour <= now_hour)

    def to_text(self) -> str:
        hours = {str(hour): size for hour, size in sorted(self.hours.items())}
        content = {
            "version": _VERSION,
            "counter": self.counter,
            "counted_bytes": self.counted_bytes,
            "hours": hours,
        }
        return json.dumps(content | {"crc32": _checksum(content)}) + "\n"

    @classmethod
    def from_text(cls, text: str) -> Ledger:
        """DamagedError."""
        try:
            content = json.loads(text)
            if not isinstance(content, dict) or content.pop("crc32") != _checksum(content):
                raise DamagedError("its checksum is wrong")
            if content["version"] != _VERSION:
                raise DamagedError(f"it is of version {content['version']}")
            hours = {int(hour): int(size) for hour, size in content["hours"].items()}
            return cls(hours, str(content["counter"]), int(content["counted_bytes"]))
        except DamagedError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedError(f"it is not a ledger: {error!r}") from None


def used_up(day_bytes: int, now_hour: int) -> Ledger:
    """As if the budget of a day had been used up in every 24 hours."""
    an_hour = -(-day_bytes // HOURS_A_DAY)
    return Ledger(dict.fromkeys(range(now_hour - HOURS_KEPT + 1, now_hour + 1), an_hour))


def read(path: Path) -> Ledger:
    """FileNotFoundError; DamagedError, also if the file cannot be read."""
    try:
        return Ledger.from_text(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"it cannot be read: {reason_of(error)}") from None


def write(path: Path, text: str) -> None:
    """Replace the file: after a crash or a power failure it is the old one or the new one. OSError."""
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text[: len(text) // 2])
        file.flush()
        reach("ledger.half")
        file.write(text[len(text) // 2 :])
        file.flush()
        os.fsync(file.fileno())
    reach("ledger.written")
    new.replace(path)
    reach("ledger.replaced")
    with contextlib.suppress(OSError):  # some file systems have no fsync of directories
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
