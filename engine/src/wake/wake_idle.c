/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The pages that an idle guest touches again soon after each swap-out: to take them out costs a write and a
 * page fault each time, and frees nothing for longer than seconds. */
#include "base/held.h"
#include "wake/wake_layout.h"

/* Of 256 that could stay, so many go out all the same, to see if they are still touched: as many as were not
 * when they last went out, but not more than an eighth. */
#define TRIED_256_MIN 8
#define TRIED_256_MAX 32

static uint32_t tried_256(const struct wake_header *header)
{
	uint32_t tried = atomic_load(&header->idle_vain_256);

	return tried < TRIED_256_MIN ? TRIED_256_MIN : tried > TRIED_256_MAX ? TRIED_256_MAX : tried;
}

/* Choose among those that were touched in so many cycles in a row. The set is in the order of its pages'
 * first touches. Returns how many stay in all. */
static uint32_t choose(struct wake_record *record, struct wake_entry *entries, uint32_t n, unsigned times,
		       uint32_t stays_n, uint64_t pages_max)
{
	uint32_t tried = tried_256(record->header);

	for (uint32_t i = 0; i < n && stays_n < pages_max; i++) {
		unsigned early_times = wake_early_times(&entries[i]);

		if (!wake_is_idle(&entries[i]) ||
		    (early_times > entries[i].idle_times ? early_times : entries[i].idle_times) != times ||
		    (wake_random(record) >> 32 & 255) < tried)
			continue;
		entries[i].flags |= ENTRY_STAYS;
		wake_put_bit(record->stays, entries[i].page_idx, true);
		stays_n++;
	}
	return stays_n;
}

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
		entries[i].flags &= (uint8_t)~ENTRY_STAYS;
		wake_put_bit(record->stays, entries[i].page_idx, false);
	}
	atomic_store(&header->idle_max, pages_max < WAKE_PAGES_MAX ? (uint32_t)pages_max : WAKE_PAGES_MAX);
	for (unsigned times = IDLE_TIMES_MAX; times >= IDLE_TIMES_KNOWN; times--)
		stays_n = choose(record, entries, n, times, stays_n, pages_max);
	atomic_store(&header->stays_n, stays_n);
	pthread_mutex_unlock(&record->lock);
}

bool wake_record_is_idle(const struct wake_record *record, uint64_t page_idx)
{
	return page_idx <= TOUCH_PAGE_MASK && wake_has_bit(record->stays, page_idx);
}

/* What came back ahead of the guest would never be seen a second time. */
uint32_t wake_left_to_faults(const struct wake_header *header)
{
	uint64_t from_ms = atomic_load(&header->idle_from_ms);

	return !atomic_load(&header->ordered) && wake_now_ms() <= from_ms + WAKE_EARLY_MS ?
		       atomic_load(&header->idle_max) :
		       0;
}
