/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What comes back ahead of the guest, as far as the record cares. */
#include <stdlib.h>

#include "base/held.h"
#include "wake/wake_layout.h"

/* Of 1024 pages of the set, a replay holds back so many, as each costs a page fault: of a large set no more
 * pages than HELD_PAGES_ENOUGH, which say well enough what share of it is in vain, but always HELD_1024_MIN;
 * of a small one HELD_1024. With much waste it is twice its share. */
#define HELD_PAGES_ENOUGH 128
#define HELD_1024_MIN 16
#define HELD_1024 64
#define HELD_1024_MAX 512

static uint32_t held_1024(const struct wake_header *header, uint32_t set_n)
{
	uint32_t held = set_n ? HELD_PAGES_ENOUGH * 1024 / set_n : HELD_1024;
	uint32_t for_waste = 2 * 4 * atomic_load(&header->wasted_256);

	held = held < HELD_1024_MIN ? HELD_1024_MIN : held > HELD_1024 ? HELD_1024 : held;
	held = for_waste > held ? for_waste : held;
	return held < HELD_1024_MAX ? held : HELD_1024_MAX;
}

/* Once in a cycle: a second replay of it holds back the same pages. */
static void choose_held(struct wake_record *record, struct wake_entry *entries, uint32_t n)
{
	uint32_t share = held_1024(record->header, n), left_n = wake_left_to_faults(record->header);

	for (uint32_t i = 0; i < n; i++) {
		if (entries[i].flags & (ENTRY_OFFERED | ENTRY_HELD | ENTRY_STAYS))
			continue;
		if (left_n && wake_early_times(&entries[i]) + 1 == IDLE_TIMES_KNOWN) {
			left_n--;
			continue;
		}
		if (entries[i].age > 0 && (wake_random(record) >> 32 & 1023) < share) {
			entries[i].flags |= ENTRY_HELD;
			wake_put_bit(record->held, entries[i].page_idx, true);
			atomic_fetch_add(&record->header->held_n, 1);
		} else {
			entries[i].flags |= ENTRY_OFFERED;
			atomic_fetch_add(&record->header->offered_n, 1);
		}
	}
}

size_t wake_record_offer(struct wake_record *record, struct wake_page **out)
{
	struct wake_page *pages;
	struct wake_entry *entries;
	uint32_t which, n;
	size_t offered = 0;

	HELD_MAY_WAIT(WAIT_TIME);
	*out = NULL;
	pthread_mutex_lock(&record->lock);
	which = atomic_load(&record->header->current);
	entries = wake_set(record, which);
	n = atomic_load(&record->header->set_n[which]);
	pages = n ? malloc(n * sizeof *pages) : NULL;
	if (pages) {
		choose_held(record, entries, n);
		for (uint32_t i = 0; i < n; i++)
			if (entries[i].flags & ENTRY_OFFERED)
				pages[offered++] = (struct wake_page){ entries[i].page_idx,
								       entries[i].flags & ENTRY_WRITTEN };
	}
	pthread_mutex_unlock(&record->lock);
	*out = pages;
	return offered;
}

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
