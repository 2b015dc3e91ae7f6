/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a cycle teaches: the touches since the last swap-out become part of the set. */
#include <stdlib.h>
#include <string.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "wake/wake_layout.h"

#define AGE_MAX 255
#define IDLE_MISSES_MAX 8  /* the same of a page that idle guests touch, by cycles too short to see that */
#define IDLE_SOON_MS 60000 /* so long after a swap-out a touch is soon */
#define IDLE_LOOK_MS 10000 /* a guest that was idle for less than this does not say what it touches then */
#define MISSES_MAX 2	   /* so many wake-ups in a row without a touch, and the page leaves the set */
#define HELD_PAGES_MIN 8   /* fewer that were held back say nothing about the rest */

/* A page that is in the set, was touched in this cycle, or both. */
struct candidate {
	struct wake_entry entry;
	uint32_t rank; /* in the set, among the touches, or between the two */
	bool was_in_set, is_touched;
	bool is_idle;  /* touched while the guest was idle */
	bool is_soon;  /* the same, soon after the swap-out */
	bool is_early; /* within seconds of the swap-out, and nobody had ordered a wake-up */
};

/* What is known of the cycle as a whole. */
struct cycle {
	bool woke;    /* else it says nothing about pages that wake-ups touch */
	bool spoiled; /* it says nothing about any page that was not touched */
	bool idled;   /* the guest was idle for long enough to say what it touches then */
	bool lasted;  /* for long enough to say what the guest touches within seconds of a swap-out */
	uint32_t touches_n;
	uint32_t held_n, held_touched_n;
	uint32_t tried_n, vain_n; /* pages that could have stayed: how many went out, and were not touched */
};

static int by_page(const void *left, const void *right)
{
	const struct candidate *a = left, *b = right;

	if (a->entry.page_idx != b->entry.page_idx)
		return a->entry.page_idx < b->entry.page_idx ? -1 : 1;
	if (a->was_in_set != b->was_in_set)
		return a->was_in_set ? -1 : 1;
	return a->rank < b->rank ? -1 : a->rank > b->rank;
}

static int by_rank(const void *left, const void *right)
{
	const struct candidate *a = left, *b = right;

	if (a->rank != b->rank)
		return a->rank < b->rank ? -1 : 1;
	return a->entry.page_idx < b->entry.page_idx ? -1 : a->entry.page_idx > b->entry.page_idx;
}

/* True if touch number i came so soon after the swap-out. */
static bool is_within(const struct wake_header *header, uint32_t i, uint64_t touch, uint32_t limit_ms)
{
	uint32_t since_ms = (uint32_t)atomic_load(&header->idle_from_ms);

	return !atomic_load(&header->idle_from_ms) || i < atomic_load(&header->leaving_n) ||
	       (uint32_t)(touch >> TOUCH_MS_SHIFT) - since_ms <= limit_ms;
}

/* True if the guest was idle at touch number i. */
static bool was_idle(const struct wake_header *header, uint32_t i)
{
	uint32_t calm_at = atomic_load(&header->calm_at), again_at = atomic_load(&header->again_at);

	return !atomic_load(&header->woke) || i < atomic_load(&header->woke_at) ||
	       (calm_at && i >= calm_at && (!again_at || i < again_at));
}

/* An order says that somebody waits for what follows. */
static bool was_ordered(const struct wake_header *header, uint32_t i)
{
	return atomic_load(&header->ordered) && i >= atomic_load(&header->waking_at);
}

static struct candidate candidate_of(const struct wake_header *header, uint32_t i, uint64_t touch)
{
	bool is_idle = was_idle(header, i);

	return (struct candidate){
		.entry = { .page_idx = (uint32_t)(touch & TOUCH_PAGE_MASK),
			   .flags = touch & TOUCH_WRITE ? ENTRY_WRITTEN : 0 },
		.rank = i,
		.is_touched = true,
		.is_idle = is_idle,
		.is_soon = is_idle && is_within(header, i, touch, IDLE_SOON_MS),
		.is_early = is_within(header, i, touch, WAKE_EARLY_MS) && !was_ordered(header, i),
	};
}

static size_t collect(struct wake_record *record, const struct cycle *cycle, struct candidate *all)
{
	struct wake_header *header = record->header;
	uint32_t which = atomic_load(&header->current), set_n = atomic_load(&header->set_n[which]);
	size_t n = 0;

	for (uint32_t i = 0; i < set_n; i++)
		all[n++] = (struct candidate){
			.entry = wake_set(record, which)[i],
			.rank = i,
			.was_in_set = true,
		};
	for (uint32_t i = 0; i < cycle->touches_n; i++) {
		uint64_t touch = atomic_load_explicit(&wake_touches(record)[i], memory_order_relaxed);

		if (touch & TOUCH_VALID)
			all[n++] = candidate_of(header, i, touch);
	}
	return n;
}

/* The first of a page's candidates takes over what the others say. Returns how many pages there are. */
static size_t merge(struct candidate *all, size_t n)
{
	size_t pages = 0;

	qsort(all, n, sizeof *all, by_page);
	for (size_t i = 0; i < n; i++) {
		struct candidate *last = pages ? &all[pages - 1] : NULL;

		if (!last || last->entry.page_idx != all[i].entry.page_idx) {
			all[pages++] = all[i];
			continue;
		}
		if (!last->is_touched) { /* the set's; all[i] is the first touch */
			last->rank = (uint32_t)(((uint64_t)last->rank + all[i].rank) / 2);
			last->entry.flags &= (uint8_t)~ENTRY_WRITTEN;
			last->is_touched = true;
			last->is_idle = all[i].is_idle;
			last->is_soon = all[i].is_soon;
			last->is_early = all[i].is_early;
		}
		last->entry.flags |= all[i].entry.flags;
	}
	return pages;
}

static void note_held(struct cycle *cycle, const struct candidate *page)
{
	if (!(page->entry.flags & ENTRY_HELD))
		return;
	cycle->held_n++;
	cycle->held_touched_n += page->is_touched;
}

/* True if it would have been seen that an idle guest touches the page. */
static bool was_idle_seen(const struct cycle *cycle, uint8_t flags)
{
	return cycle->idled && !(flags & ENTRY_STAYS);
}

/* True if it would have been seen that the guest touches the page within seconds. */
static bool was_early_seen(const struct cycle *cycle, uint8_t flags)
{
	return cycle->lasted && !(flags & (ENTRY_STAYS | ENTRY_OFFERED));
}

/* A page that could have stayed went out. */
static void note_tried(struct cycle *cycle, const struct candidate *page)
{
	if (!wake_is_idle(&page->entry) || !was_early_seen(cycle, page->entry.flags))
		return;
	cycle->tried_n++;
	cycle->vain_n += !page->is_early && !page->is_idle;
}

static void count_idle(struct candidate *page, const struct cycle *cycle, uint8_t flags)
{
	struct wake_entry *entry = &page->entry;

	if (page->is_idle) {
		entry->idle_times += entry->idle_times < IDLE_TIMES_MAX;
		entry->flags &= (uint8_t)~ENTRY_SOON;
		entry->flags |= page->is_soon ? ENTRY_SOON : 0;
	} else if (was_idle_seen(cycle, flags)) {
		entry->idle_times = 0;
	}
	if (page->is_early && wake_early_times(entry) < IDLE_TIMES_MAX)
		entry->flags += ENTRY_EARLY_ONE;
	else if (!page->is_early && was_early_seen(cycle, flags))
		entry->flags &= (uint8_t)~ENTRY_EARLY_MASK;
}

/* Bring the page's entry up to date. False: it leaves the set. */
static bool stays(struct candidate *page, const struct cycle *cycle)
{
	struct wake_entry *entry = &page->entry;
	uint8_t flags = entry->flags;

	entry->flags &= ENTRY_WRITTEN | ENTRY_WOKE | ENTRY_SOON | ENTRY_EARLY_MASK;
	count_idle(page, cycle, flags);
	if (page->is_touched) {
		entry->age = entry->misses = 0;
		entry->flags |= page->is_idle ? 0 : ENTRY_WOKE;
		return true;
	}
	if (flags & ENTRY_STAYS)
		return true;
	if (!cycle->woke)
		return cycle->spoiled || (flags & (ENTRY_WOKE | ENTRY_OFFERED)) ||
		       (entry->idle_times >= IDLE_TIMES_KNOWN && ++entry->misses < IDLE_MISSES_MAX);
	if (entry->age < AGE_MAX)
		entry->age++;
	if (flags & ENTRY_OFFERED)
		return true; /* if it was touched, nobody saw it */
	return !(flags & ENTRY_HELD) && ++entry->misses < MISSES_MAX;
}

static size_t choose(struct candidate *all, size_t n, const struct cycle *cycle)
{
	size_t chosen = 0;

	for (size_t i = 0; i < n; i++)
		if (stays(&all[i], cycle))
			all[chosen++] = all[i];
	qsort(all, chosen, sizeof *all, by_rank);
	return chosen < WAKE_PAGES_MAX ? chosen : WAKE_PAGES_MAX;
}

/* The other set is written whole before it becomes the valid one. */
static void install(struct wake_record *record, const struct candidate *all, size_t n)
{
	struct wake_header *header = record->header;
	uint32_t before = atomic_load(&header->current), after = !before;

	for (size_t i = 0; i < n; i++)
		wake_set(record, after)[i] = all[i].entry;
	atomic_store(&header->set_n[after], (uint32_t)n);
	FAILPOINT_HERE("wake.folded");
	wake_members(record, before, false);
	atomic_store(&header->current, after);
	wake_members(record, after, true);
	atomic_store(&header->set_n[before], 0);
	wake_forget(record, SETS_OFFSET_BYTES + before * SET_BYTES, SET_BYTES);
}

static void account_waste(struct wake_header *header, const struct cycle *cycle)
{
	uint64_t prefetched_pages = atomic_exchange(&header->cycle_prefetched_pages, 0);

	if (!cycle->woke) { /* brought back for nothing */
		atomic_fetch_add(&header->wasted_pages, prefetched_pages);
		return;
	}
	if (cycle->held_n >= HELD_PAGES_MIN)
		atomic_store(&header->wasted_256,
			     256 * (cycle->held_n - cycle->held_touched_n) / cycle->held_n);
	atomic_fetch_add(&header->wasted_pages, prefetched_pages * atomic_load(&header->wasted_256) / 256);
}

static uint64_t idle_ms(const struct wake_header *header)
{
	uint64_t from_ms = atomic_load(&header->idle_from_ms), until_ms = atomic_load(&header->idle_until_ms);

	until_ms = until_ms ? until_ms : wake_now_ms();
	return from_ms && until_ms > from_ms ? until_ms - from_ms : 0;
}

/* Smoothed: few pages are tried at a time. */
static void account_tried(struct wake_header *header, const struct cycle *cycle)
{
	if (cycle->tried_n)
		atomic_store(&header->idle_vain_256,
			     (atomic_load(&header->idle_vain_256) + 256 * cycle->vain_n / cycle->tried_n) /
				     2);
}

/* What comes after an order, or once all comes back, says nothing of what an idle guest touches. */
static bool has_lasted(const struct wake_header *header)
{
	uint64_t from_ms = atomic_load(&header->idle_from_ms);
	bool is_cut_short = atomic_load(&header->spoiled) || atomic_load(&header->ordered);

	return is_cut_short ? idle_ms(header) >= WAKE_EARLY_MS :
			      from_ms && wake_now_ms() - from_ms >= WAKE_EARLY_MS;
}

static void fold(struct wake_record *record)
{
	struct wake_header *header = record->header;
	struct cycle cycle = {
		.woke = atomic_load(&header->woke) && !atomic_load(&header->spoiled),
		.spoiled = atomic_load(&header->spoiled),
		.idled = idle_ms(header) >= IDLE_LOOK_MS,
		.lasted = has_lasted(header),
		.touches_n = atomic_load(&header->touches_n),
	};
	size_t room, n;
	struct candidate *all;

	if (cycle.touches_n > WAKE_PAGES_MAX)
		cycle.touches_n = WAKE_PAGES_MAX;
	room = (size_t)atomic_load(&header->set_n[atomic_load(&header->current)]) + cycle.touches_n;
	all = room ? malloc(room * sizeof *all) : NULL;
	if (all) { /* without memory, the cycle teaches nothing */
		n = merge(all, collect(record, &cycle, all));
		for (size_t i = 0; i < n; i++) {
			note_held(&cycle, &all[i]);
			note_tried(&cycle, &all[i]);
		}
		if (!cycle.spoiled)
			account_waste(header, &cycle);
		account_tried(header, &cycle);
		install(record, all, choose(all, n, &cycle));
	}
	free(all);
}

void wake_record_fold(struct wake_record *record)
{
	struct wake_header *header = record->header;

	HELD_MAY_WAIT(WAIT_TIME);
	pthread_mutex_lock(&record->lock);
	/* OFF without a spoiled cycle: none was begun, or it was folded already */
	if (atomic_exchange(&header->phase, WAKE_OFF) != WAKE_OFF || atomic_load(&header->spoiled)) {
		fold(record);
		atomic_store(&header->touches_n, 0);
		atomic_store(&header->spoiled, 0);
		wake_forget(record, TOUCHES_OFFSET_BYTES, WAKE_FILE_BYTES - TOUCHES_OFFSET_BYTES);
	}
	pthread_mutex_unlock(&record->lock);
}
