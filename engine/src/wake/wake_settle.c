/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The end of what looked like a wake-up, and whether it was one. */
#include "wake/wake_layout.h"

/* A wake-up that touches less than this, or less than this part of the set, was none. After a replay, a guest
 * that wakes up touches some of what was held back, or much that is not in the set. Few pages that were held
 * back say nothing. */
#define WAKE_TOUCHES_MIN 64
#define WAKE_TOUCHES_PART 32
#define WAKE_HELD_MIN 8
#define WAKE_HELD_PART 4
#define WAKE_OTHERS_PART 64

/* True if what was touched since is enough for a wake-up. */
static bool was_wake_up(const struct wake_header *header)
{
	uint32_t set_n = atomic_load(&header->set_n[atomic_load(&header->current)]);
	uint32_t touched = wake_faults_after(header, atomic_load(&header->waking_at));
	uint32_t offered_n = atomic_load(&header->offered_n), held_n = atomic_load(&header->held_n);
	uint32_t burst = atomic_load(&header->ordered) ? 0 : WAKE_BURST_PAGES + 1;
	uint32_t held_part = held_n / WAKE_HELD_PART, others_part = set_n / WAKE_OTHERS_PART;

	if (!offered_n)
		return touched >= WAKE_TOUCHES_MIN && touched >= set_n / WAKE_TOUCHES_PART;
	if (held_n < WAKE_HELD_MIN)
		return touched > 0;
	return atomic_load(&header->held_touched_n) >= held_part ||
	       touched >= burst + (held_part > others_part ? held_part : others_part);
}

/* True if the wake-up that is over may have been noise. */
static bool was_early(const struct wake_header *header)
{
	return !atomic_load(&header->ordered) &&
	       atomic_load(&header->wake_from_ms) <= atomic_load(&header->idle_from_ms) + WAKE_EARLY_MS;
}

/* The guest is as idle as before what looked like a wake-up. */
static void was_none(struct wake_header *header)
{
	bool was_first = atomic_load(&header->waking_at) == atomic_load(&header->woke_at);

	if (atomic_load(&header->ordered))
		return;
	atomic_store(was_first ? &header->woke : &header->again_at, 0);
	atomic_store(&header->idle_until_ms, 0);
}

static void is_calm(struct wake_header *header)
{
	atomic_store(&header->calm_at, atomic_load(&header->touches_n));
	atomic_store(&header->again_at, 0);
	atomic_store(&header->idle_until_ms, 0);
}

bool wake_record_settle(struct wake_record *record)
{
	struct wake_header *header = record->header;
	uint32_t waking = WAKE_WAKING;
	bool was_one = was_wake_up(header), is_over = was_one && !was_early(header);

	if (atomic_load(&header->phase) != WAKE_WAKING)
		return false;
	if (was_one)
		atomic_store(&header->last_wake_ms, wake_span_ms(header));
	if (!was_one)
		was_none(header);
	else if (!is_over)
		is_calm(header);
	atomic_store(&record->burst_n, 0);
	return atomic_compare_exchange_strong(&header->phase, &waking, is_over ? WAKE_SETTLED : WAKE_IDLE) &&
	       was_one;
}
