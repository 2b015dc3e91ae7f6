# SPDX-License-Identifier: GPL-2.0-or-later
"""Import this before asyncio: asyncio without TLS, which nothing here speaks.

asyncio takes the ssl module if it is there, and does without where Python was built without it. With it come
OpenSSL's tables, more than a MiB in each process, and there is one for each VM.
"""

from __future__ import annotations

import sys

if "ssl" not in sys.modules:
    sys.modules["ssl"] = None  # type: ignore[assignment]  # what the import system means by "not there"
    import asyncio  # noqa: F401

    del sys.modules["ssl"]
