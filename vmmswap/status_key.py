# SPDX-License-Identifier: GPL-2.0-or-later
"""A row of the table of Status' keys (status.py)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


class Kind(enum.Enum):
    """How a figure behaves: a counter grows until its restart, which its help names; a gauge does not."""

    COUNTER = "counter"
    GAUGE = "gauge"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class StatusKey:
    """One row of the table.

    attribute: of Status. key, signature: on the bus. signalled: changes raise PropertiesChanged; the others
    carry EmitsChangedSignal=false, so that proxies do not cache them. unit: pages (of PageSize bytes), bytes,
    faults, ms, us or "". since: the first version that has it. engine: the field of EngineStats with the
    value; "": report.py finds it. title: its name in `vmmswapctl status`; "": it is part of another row.
    shown_if_set: no row while the value is 0, false or empty.
    """

    attribute: str
    key: str
    signature: str
    kind: Kind
    unit: str
    help: str
    since: str
    signalled: bool
    engine: str
    title: str
    shown_if_set: bool


def status_key(  # noqa: PLR0913  one parameter a column
    default: Any,  # noqa: ANN401  of the field's own type
    key: str,
    signature: str = "t",
    *,
    help: str,  # noqa: A002  the column's name
    kind: Kind | None = None,
    unit: str = "",
    since: str = "0.1",
    signalled: bool = False,
    engine: str = "",
    title: str = "",
    shown_if_set: bool = False,
) -> Any:  # noqa: ANN401  a dataclass field
    kind = kind or (Kind.GAUGE if signature in "tu" else Kind.TEXT)
    return field(
        default=default, metadata={name: value for name, value in locals().items() if name != "default"}
    )
