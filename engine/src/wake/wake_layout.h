/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The record of wake-ups from the inside: wake_record.c and wake_fold.c. */
#ifndef VMMSWAP_WAKE_LAYOUT_H
#define VMMSWAP_WAKE_LAYOUT_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/units.h"
#include "wake/wake_record.h"

enum wake_phase {
	WAKE_OFF,     /* nothing is noted */
	WAKE_IDLE,    /* touches are noted; the guest is idle */
	WAKE_WAKING,  /* touches are noted; a wake-up is under way */
	WAKE_SETTLED, /* the wake-up is over, and nothing is noted any more */
	WAKE_LEAVING, /* touches are noted; a swap-out is under way, and nothing counts as a wake-up */
};

/* A touch, in the order in which they came; 0: not there yet. */
#define TOUCH_PAGE_MASK (((uint64_t)1 << 30) - 1)
#define TOUCH_WRITE ((uint64_t)1 << 30)
#define TOUCH_VALID ((uint64_t)1 << 31)
#define TOUCH_MS_SHIFT 32

/* A page of the set. Its place in the set is its rank. */
struct wake_entry {
	uint32_t page_idx;
	uint8_t age; /* so many wake-ups ago it last raised a fault */
	/* in so many cycles in a row the guest touched it while it was idle; cycles that say nothing left
	 * out */
	uint8_t idle_times;
	uint8_t misses; /* at so many wake-ups in a row it would have raised a fault and did not */
	uint8_t flags;
};

#define ENTRY_WRITTEN 1
#define ENTRY_OFFERED 2 /* by this cycle's replay */
#define ENTRY_HELD 4	/* back by this cycle's replay */
#define ENTRY_WOKE 8	/* a wake-up has touched it, not only an idle guest */
#define ENTRY_SOON 16	/* the last time that an idle guest touched it was soon after the swap-out */
#define ENTRY_STAYS 32	/* it did not go out at the beginning of this cycle */
/* In so many cycles in a row it was touched within seconds of the swap-out, slowly or in a burst; cycles that
 * say nothing left out. */
#define ENTRY_EARLY_ONE 64
#define ENTRY_EARLY_MASK 192

#define IDLE_TIMES_MAX 3
#define IDLE_TIMES_KNOWN 2 /* from then on it counts as touched by an idle guest */

static inline unsigned wake_early_times(const struct wake_entry *entry)
{
	return entry->flags / ENTRY_EARLY_ONE;
}

/* The pages that stay, unless there are too many of them. */
static inline bool wake_is_idle(const struct wake_entry *entry)
{
	return wake_early_times(entry) >= IDLE_TIMES_KNOWN ||
	       (entry->idle_times >= IDLE_TIMES_KNOWN && (entry->flags & ENTRY_SOON));
}

/* Lives in the memfd's first page. */
struct wake_header {
	char magic[8];
	uint32_t version;
	_Atomic uint32_t phase;	  /* enum wake_phase */
	_Atomic uint32_t current; /* which of the two sets is valid */
	_Atomic uint32_t set_n[2];
	_Atomic uint32_t touches_n; /* may be larger than there is room for */
	_Atomic uint32_t woke;	    /* a wake-up was seen in this cycle */
	_Atomic uint32_t ordered;   /* by a caller who knows that it is one */
	_Atomic uint32_t woke_at;   /* that many touches came before it */
	_Atomic uint32_t spoiled;   /* see wake_record_spoil() */
	_Atomic uint32_t replaying;
	_Atomic uint32_t offered_n, held_n; /* by this cycle's replay */
	_Atomic uint32_t wasted_256;	    /* of 256 pages of the last replay, so many were not needed */
	_Atomic uint64_t cycle_prefetched_pages;
	_Atomic uint64_t prefetched_pages;
	_Atomic uint64_t wasted_pages;
	_Atomic uint64_t wake_from_ms, wake_until_ms; /* monotonic; 0: no fault yet */
	_Atomic uint64_t last_wake_ms;		      /* how long the last one took */
	/* The guest was idle in this cycle from when the swap-out ended; until: 0: it is so yet.
	 * Monotonic. */
	_Atomic uint64_t idle_from_ms, idle_until_ms;
	_Atomic uint32_t noted_n;   /* touches in this cycle that raised no page fault: wake_record_note() */
	_Atomic uint32_t leaving_n; /* so many touches came during the swap-out */
	_Atomic uint32_t stays_n;   /* pages that did not go out with it: ENTRY_STAYS */
	/* So many touches came before the wake-up that is under way, or the last one. */
	_Atomic uint32_t waking_at;
	/* A first wake-up, which came at once after the swap-out, was over at this number of touches, and the
	 * guest was idle until that number of them; 0: not yet. */
	_Atomic uint32_t calm_at, again_at;
	_Atomic uint32_t idle_vain_256; /* of 256 pages that could have stayed, so many were not touched */
	_Atomic uint32_t idle_max;	/* so many may stay */
	/* Of the pages that are held back, the wake-up that is under way, or the last one, touched so
	 * many. */
	_Atomic uint32_t held_touched_n;
};

#define SET_BYTES (WAKE_PAGES_MAX * sizeof(struct wake_entry))
#define SETS_OFFSET_BYTES PAGE_BYTES
#define TOUCHES_OFFSET_BYTES (SETS_OFFSET_BYTES + 2 * SET_BYTES)
#define WAKE_FILE_BYTES (TOUCHES_OFFSET_BYTES + WAKE_PAGES_MAX * sizeof(uint64_t))

#define MEMBERS_BYTES ((TOUCH_PAGE_MASK + 1) / 8)

struct wake_record {
	int fd;
	char *base; /* WAKE_FILE_BYTES, shared */
	struct wake_header *header;
	pthread_mutex_t lock; /* of the sets; no fault thread takes it */
	uint64_t seed;
	/* One bit a page: a wake-up has touched it, and an idle guest does not. What is not used takes no
	 * memory. */
	_Atomic uint8_t *members;
	_Atomic uint8_t *stays, *held; /* one bit a page: ENTRY_STAYS, ENTRY_HELD */
	_Atomic uint32_t burst_n;
	_Atomic uint32_t burst_ms[WAKE_BURST_PAGES];
};

static inline struct wake_entry *wake_set(struct wake_record *record, uint32_t which)
{
	return (struct wake_entry *)(record->base + SETS_OFFSET_BYTES + which * SET_BYTES);
}

static inline _Atomic uint64_t *wake_touches(struct wake_record *record)
{
	return (_Atomic uint64_t *)(record->base + TOUCHES_OFFSET_BYTES);
}

static inline void wake_put_bit(_Atomic uint8_t *bits, uint64_t page_idx, bool is_set)
{
	uint8_t bit = (uint8_t)(1u << page_idx % 8);

	if (is_set)
		atomic_fetch_or_explicit(&bits[page_idx / 8], bit, memory_order_relaxed);
	else
		atomic_fetch_and_explicit(&bits[page_idx / 8], (uint8_t)~bit, memory_order_relaxed);
}

static inline bool wake_has_bit(const _Atomic uint8_t *bits, uint64_t page_idx)
{
	return atomic_load_explicit(&bits[page_idx / 8], memory_order_relaxed) >> page_idx % 8 & 1;
}

/* So many touches of this cycle, beyond the first n, raised page faults. */
static inline uint32_t wake_faults_after(const struct wake_header *header, uint32_t n)
{
	uint32_t touches_n = atomic_load(&header->touches_n), other_n = n + atomic_load(&header->noted_n);

	return touches_n > other_n ? touches_n - other_n : 0;
}

static inline uint64_t wake_span_ms(const struct wake_header *header)
{
	return atomic_load(&header->wake_until_ms) - atomic_load(&header->wake_from_ms);
}

/* Set or clear the bits of members, stays and held for a set. */
void wake_members(struct wake_record *record, uint32_t which, bool is_set);

/* How many pages a replay that begins now leaves to their page faults, to see if an idle guest touches
 * them. */
uint32_t wake_left_to_faults(const struct wake_header *header);

uint64_t wake_now_ms(void);
uint64_t wake_random(struct wake_record *record);

/* Give back the memory of a part of the file. */
void wake_forget(struct wake_record *record, uint64_t offset_bytes, uint64_t size_bytes);

#endif
