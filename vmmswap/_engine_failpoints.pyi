# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine compiled with failpoints (engine/src/failpoint.h), for tests, as cffi presents it. vmmswap.engine is its typed face; nothing else imports this.

engine/src/engine.h is the reference of the functions.
"""

from typing import Any

ffi: Any
lib: Any
