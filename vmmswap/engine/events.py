# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's notices as events."""

from __future__ import annotations

from typing import Any

from vmmswap.engine.native import lib, text_of
from vmmswap.engine.reports import (
    EngineEvent,
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
    Waking,
)
from vmmswap.engine.types import Job
from vmmswap.errors import from_errno

NO_PAGE = 2**64 - 1


def pages_of(incident: Any) -> Pages:  # noqa: ANN401 - cffi's objects have no static types
    ranges = incident.ranges[0 : incident.ranges_n]
    return Pages(
        int(incident.pages), tuple(PageRange(int(item.page_idx), int(item.pages)) for item in ranges)
    )


def event_of(notice: Any) -> EngineEvent:  # noqa: ANN401 - cffi's objects have no static types
    message, page_idx = text_of(notice.message), int(notice.page_idx)
    match notice.kind:
        case lib.NOTICE_PROCESS_FORKED:
            event: EngineEvent = ProcessForked(int(notice.process_id), int(notice.parent_id), int(notice.fd))
        case lib.NOTICE_PROCESS_GONE:
            event = ProcessGone(int(notice.process_id))
        case lib.NOTICE_PROCESS_MOVED:
            event = ProcessMoved(int(notice.process_id))
        case lib.NOTICE_JOB_DONE:
            error = from_errno(int(notice.code), message) if notice.code else None
            limit = message if notice.limited_by else ""
            event = JobDone(Job(notice.job), error, bool(notice.cancelled), limit)
        case lib.NOTICE_PAGE_POISONED:
            event = PagePoisoned(page_idx, message)
        case lib.NOTICE_PAGE_HEALED:
            event = PageHealed(page_idx)
        case lib.NOTICE_PAGES_LEFT:
            event = PagesLeft(message)
        case lib.NOTICE_PAGES_LOST:
            event = PagesLost()
        case lib.NOTICE_FAULTS_STARVED:
            event = FaultsStarved(page_idx)
        case lib.NOTICE_WAKING | lib.NOTICE_REPLAY_DONE:
            event = _wake_event_of(notice)
        case lib.NOTICE_PROTECTED:
            event = Protected()
        case _:
            event = Notice(message, None if page_idx == NO_PAGE else page_idx)
    return event


def _wake_event_of(notice: Any) -> Waking | ReplayDone:  # noqa: ANN401 - cffi's objects have no static types
    if notice.kind == lib.NOTICE_WAKING:
        return Waking()
    error = from_errno(int(notice.code), text_of(notice.message)) if notice.code else None
    return ReplayDone(error, bool(notice.cancelled))
