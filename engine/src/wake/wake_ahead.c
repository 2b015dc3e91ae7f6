/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What comes back ahead of the guest, as far as the record cares. */
#include "wake/wake_layout.h"

void wake_record_prefetched(struct wake_record *record, uint64_t pages)
{
	atomic_fetch_add(&record->header->cycle_prefetched_pages, pages);
	atomic_fetch_add(&record->header->prefetched_pages, pages);
}

void wake_record_brought(struct wake_record *record, uint64_t pages, uint64_t wasted_pages)
{
	atomic_fetch_add(&record->header->prefetched_pages, pages);
	atomic_fetch_add(&record->header->wasted_pages, wasted_pages);
}

void wake_record_note(struct wake_record *record, const struct wake_page *pages, size_t n)
{
	for (size_t i = 0; i < n && wake_record_is_waking(record); i++) {
		wake_record_touch(record, pages[i].page_idx, false, false);
		atomic_fetch_add(&record->header->noted_n, 1);
	}
}

bool wake_record_is_waking(const struct wake_record *record)
{
	return atomic_load_explicit(&record->header->phase, memory_order_relaxed) == WAKE_WAKING;
}

bool wake_record_holds(const struct wake_record *record, uint64_t page_idx)
{
	return page_idx <= TOUCH_PAGE_MASK && wake_has_bit(record->held, page_idx);
}

void wake_record_set_replaying(struct wake_record *record, bool is_replaying)
{
	atomic_store(&record->header->replaying, is_replaying);
}
