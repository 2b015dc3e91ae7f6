# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine compiled with failpoints (engine/src/base/failpoint.h); see _engine.pyi.

engine/src/engine.h is the reference of the functions.
"""

from typing import Any

ffi: Any
lib: Any
