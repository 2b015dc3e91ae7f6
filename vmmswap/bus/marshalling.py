# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of dbus-next that turns values into bytes and back, without the rest of it.

`import dbus_next` would load its message buses, GLib's among them, its introspection and XML: a MiB in each
process, and there is one for each VM. Nothing here uses any of that. So the package's own __init__.py does
not run while its modules are imported.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

_PACKAGE = "dbus_next"


def _hide_init() -> None:
    """Put the package there as its modules need it: with its path, and nothing run."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {_PACKAGE!r}", name=_PACKAGE)
    sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)


_is_ours = _PACKAGE not in sys.modules
if _is_ours:
    _hide_init()
try:
    from dbus_next import (
        constants,
        errors,  # noqa: F401  before message, which it imports and which imports it
        message,
        signature,
    )
    from dbus_next._private import unmarshaller
finally:
    if _is_ours:
        del sys.modules[_PACKAGE]  # for whoever imports all of it

# The library is annotated in part, and in part wrongly ("str" where None is the default).
Message: Any = message.Message
MessageFlag: Any = constants.MessageFlag
MessageType: Any = constants.MessageType
SignatureTree: Any = signature.SignatureTree
Unmarshaller: Any = unmarshaller.Unmarshaller
Variant: Any = signature.Variant
