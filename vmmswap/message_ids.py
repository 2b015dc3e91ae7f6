# SPDX-License-Identifier: GPL-2.0-or-later
"""MESSAGE_ID= of the journal entries that programs look for. The catalog (`journalctl -x`) explains each.

Once released an identifier keeps its meaning for ever; a new meaning gets a new one (uuid4, no dashes).
"""

from __future__ import annotations

from typing import Final

OPERATION_STARTED: Final = "a6881d1af90e4cf5930f623480f7c17a"
OPERATION_FINISHED: Final = "972a784e4fb34ce9be3c6f58ea5a3824"
OPERATION_FAILED: Final = "26521ec26ad541e2818b4950a54946d8"
TRACE_HEADER: Final = "d6a43d0bbfa844afad9b2c03bfd6c9c7"
TRACE_BATCH: Final = "971ce6236ecb474a8ae76bd1c4c3c460"
VM_REGISTERED: Final = "ac34060cdf5349d89cf168ce49fd89b2"
VM_GONE: Final = "b0be6aa12ef9475a8095fe336aaecec0"
MONITOR_RESTARTED: Final = "c3e530750bf04cbc8658083bb9092a6e"
ACCESS_DENIED: Final = "757390a03f3e44e4924d0d0a3d73ec2e"
PAGE_POISONED: Final = "3eabd228451a48408648e5665484066a"
LATE_MAPPER: Final = "c79b0eecf5394e1eb4eb962ca06e6520"
CONFIGURATION_ERROR: Final = "7f96974d3bec4f3288fc7d70c1a87e7b"
WEAKER_PIN_CHECK: Final = "184fa658fc2d4c1393e896c0a1d5ba7e"
LOW_MEMORY: Final = "d3208d3ec2f548dcb49dee40ac5191bd"
PAGES_LOST: Final = "4d14e0b105bc4dee9cf8328b885b0ec8"
HUGE_PAGES: Final = "abbd2b156f8843fd9c2b54a96c03a7d3"
GUEST_WAITS: Final = "04652bbdf0904d3798bca5e61f80d891"
WOKE_UP: Final = "744b75c1997e4e599293cb3021d92573"
PAGES_LEFT: Final = "42f42b6648184d889a17e1ca38faae43"
OPERATION_LIMITED: Final = "b5e83850cabd435c904cfae173559034"

ALL: Final[dict[str, str]] = {
    name: value for name, value in globals().items() if name.isupper() and isinstance(value, str)
}
