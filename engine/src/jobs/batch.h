/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The pages of one window on their way out. evict.c stores them; punch.c marks and punches them. */
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
	/* the page's word as it was collected; after the mark, the mark */
	uint64_t claimed[CHUNK_PAGES];
	uint64_t slots[CHUNK_PAGES];
	bool zero[CHUNK_PAGES];
	bool kept[CHUNK_PAGES]; /* state KEPT: its slot is already there */
	bool marked[CHUNK_PAGES];
	bool failed[CHUNK_PAGES]; /* stays resident */
	bool whole; /* the window may have folios of several pages: all its resident pages go out, or none */
};

static inline bool batch_must_store(const struct batch *batch, size_t i)
{
	return !batch->zero[i] && !batch->kept[i];
}

/* How many pages from `from` on are adjacent. */
static inline size_t batch_run_length(const struct batch *batch, size_t from)
{
	size_t n = 1;

	while (from + n < batch->n && batch->idx[from + n] == batch->idx[from] + n)
		n++;
	return n;
}

/* Drop a page from the swap-out: it stays resident. A page with a kept copy keeps it. */
static inline void batch_let_go(struct evictor *evictor, uint64_t page_idx, uint64_t word)
{
	if (page_state_of(word) == PAGE_PROTECTED)
		page_let_go(evictor->vm, page_idx, word);
}

/* Note that a guest thread may have waited since then. */
static inline void batch_stopped_for(struct evictor *evictor, uint64_t since_ns)
{
	uint64_t stop_ns = monotonic_ns() - since_ns;

	if (stop_ns > evictor->counts.longest_stop_ns)
		evictor->counts.longest_stop_ns = stop_ns;
}

#endif
