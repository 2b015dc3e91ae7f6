/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The pages of one window on their way out, between evict.c, which stores them, and punch.c, which takes them away. */
#ifndef VMMSWAP_BATCH_H
#define VMMSWAP_BATCH_H

#include "jobs/evict.h"
#include "vm/page.h"

/* `n` pages, in ascending order; page i's bytes stand at buffer + i * PAGE_BYTES. */
struct batch {
	struct evictor *evictor;
	const struct region *region;
	size_t n;
	uint64_t idx[CHUNK_PAGES];
	/* the word when we took the page; later, after the mark, what we made of it */
	uint64_t claimed[CHUNK_PAGES];
	uint64_t slots[CHUNK_PAGES];
	bool zero[CHUNK_PAGES];
	bool kept[CHUNK_PAGES]; /* state KEPT: its slot is already there */
	bool marked[CHUNK_PAGES];
	bool failed[CHUNK_PAGES]; /* it is left behind */
	bool whole; /* the chunk may hold folios of several pages: all that is resident goes, or nothing */
};

static inline bool batch_must_store(const struct batch *batch, size_t i)
{
	return !batch->zero[i] && !batch->kept[i];
}

/* How many pages from `from` on lie side by side. */
static inline size_t batch_run_length(const struct batch *batch, size_t from)
{
	size_t n = 1;

	while (from + n < batch->n && batch->idx[from + n] == batch->idx[from] + n)
		n++;
	return n;
}

/* A page that is PROTECTED stays, unless someone was faster. One with a kept copy just keeps it. */
static inline void batch_let_go(struct evictor *evictor, uint64_t page_idx, uint64_t word)
{
	if (page_state_of(word) == PAGE_PROTECTED)
		page_let_go(evictor->vm, page_idx, word);
}

/* A guest thread may have stood still since then. */
static inline void batch_stopped_for(struct evictor *evictor, uint64_t since_ns)
{
	uint64_t stop_ns = monotonic_ns() - since_ns;

	if (stop_ns > evictor->counts.longest_stop_ns)
		evictor->counts.longest_stop_ns = stop_ns;
}

#endif
