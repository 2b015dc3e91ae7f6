# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine of one VM, typed. All that happens per page or while a guest thread waits is in C (engine/src/).

Calls release the GIL. None blocks for longer than a system call, except where it says so. All errors are
vmmswap.errors classes.
"""

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
    holders_of,
    mappers_of,
)
from vmmswap.engine.types import (
    EngineConfig,
    EngineEvent,
    EngineStats,
    FaultsStarved,
    Job,
    JobDone,
    Mode,
    Mover,
    Notice,
    PageHealed,
    PagePoisoned,
    PageRange,
    Pages,
    PagesLeft,
    PagesLost,
    PinOptions,
    ProcessForked,
    ProcessGone,
    ProcessMoved,
    Protected,
    Range,
    Recovered,
    ReplayDone,
    SwapOutOptions,
    TierFds,
    Tiers,
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
    "start_probe_read",
    "try_collapse",
]
