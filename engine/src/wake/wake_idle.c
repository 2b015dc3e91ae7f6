/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The pages that an idle guest touches again soon after each swap-out: to take them out costs a write and a
 * page fault each time, and frees nothing for longer than seconds. */
#include "base/held.h"
#include "wake/wake_layout.h"

/* Of 256 that could stay, so many go out all the same, to see if they are still touched. */
#define TRIED_256 32

static bool is_known(const struct wake_entry *entry)
{
	return entry->idle_times >= IDLE_TIMES_KNOWN && (entry->flags & ENTRY_SOON);
}

/* The set is in the order of its pages' first touches: if there are too many, those that are touched first
 * stay. */
void wake_record_choose_idle(struct wake_record *record, uint64_t pages_max)
{
	struct wake_header *header = record->header;
	struct wake_entry *entries;
	uint32_t which, n, stays_n = 0;

	HELD_MAY_WAIT(WAIT_TIME);
	pthread_mutex_lock(&record->lock);
	which = atomic_load(&header->current);
	entries = wake_set(record, which);
	n = atomic_load(&header->set_n[which]);
	for (uint32_t i = 0; i < n; i++) {
		bool stays = stays_n < pages_max && is_known(&entries[i]) &&
			     (wake_random(record) >> 32 & 255) >= TRIED_256;

		entries[i].flags &= (uint8_t)~ENTRY_STAYS;
		entries[i].flags |= stays ? ENTRY_STAYS : 0;
		wake_put_bit(record->stays, entries[i].page_idx, stays);
		stays_n += stays;
	}
	atomic_store(&header->stays_n, stays_n);
	pthread_mutex_unlock(&record->lock);
}

bool wake_record_is_idle(const struct wake_record *record, uint64_t page_idx)
{
	return page_idx <= TOUCH_PAGE_MASK && wake_has_bit(record->stays, page_idx);
}
