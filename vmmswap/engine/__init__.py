# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine of one VM, typed. All that happens per page or while a guest thread waits is in C (engine/src/).

Calls release the GIL. None blocks for longer than a system call, except where it says so. All errors are
vmmswap.errors classes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vmmswap.engine.engine import (
    Engine,
)
from vmmswap.engine.failpoints import (
    arm_failpoints,
    failpoint_hits,
    failpoint_names,
)
from vmmswap.engine.kernel import (
    is_page_there,
    registered_buffer_in,
    start_probe_read,
    try_collapse,
)
from vmmswap.engine.mappers import (
    Holder,
    Mapper,
    MapperWatch,
    SharedLook,
    holders_of,
    mappers_of,
    shared_holders,
    shared_mappers,
)
from vmmswap.engine.types import (
    EngineConfig,
    Job,
    Mode,
    Mover,
    PinOptions,
    Range,
    Recovered,
    SwapOutOptions,
    TierFds,
    Tiers,
)

if TYPE_CHECKING:
    from vmmswap.engine.reports import (
        EngineEvent,
        EngineStats,
        FaultsStarved,
        JobDone,
        Notice,
        PageHealed,
        PagePoisoned,
        PageRange,
        Pages,
        PagesLeft,
        PagesLost,
        ProcessForked,
        ProcessGone,
        ProcessMoved,
        Protected,
        ReplayDone,
        TraceRecord,
        Waking,
    )

__all__ = [
    "Engine",
    "EngineConfig",
    "EngineEvent",
    "EngineStats",
    "FaultsStarved",
    "Holder",
    "Job",
    "JobDone",
    "Mapper",
    "MapperWatch",
    "Mode",
    "Mover",
    "Notice",
    "PageHealed",
    "PagePoisoned",
    "PageRange",
    "Pages",
    "PagesLeft",
    "PagesLost",
    "PinOptions",
    "ProcessForked",
    "ProcessGone",
    "ProcessMoved",
    "Protected",
    "Range",
    "Recovered",
    "ReplayDone",
    "SharedLook",
    "SwapOutOptions",
    "TierFds",
    "Tiers",
    "TraceRecord",
    "Waking",
    "arm_failpoints",
    "failpoint_hits",
    "failpoint_names",
    "holders_of",
    "is_page_there",
    "mappers_of",
    "registered_buffer_in",
    "shared_holders",
    "shared_mappers",
    "start_probe_read",
    "try_collapse",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  of that module
    """What the engine reports is loaded when it is first asked for: a successor serves before that."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("vmmswap.engine.reports"), name)
