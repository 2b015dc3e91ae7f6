/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Windows: a worker of a long job takes one window of guest memory at a time.
 *
 * A window lies within one region and within 2 MiB, aligned, of its memfd: the largest folio that shmem makes
 * never crosses its bounds. */
#ifndef VMMSWAP_WINDOW_H
#define VMMSWAP_WINDOW_H

#include "vm/memory.h"
#include "vm/page_map.h"

struct window {
	struct region region;
	uint64_t page_idx, pages;
	uint64_t data[CHUNK_PAGES / 64]; /* which of its pages have data; bit 0: page_idx */
};

/* How far a pass over memory has come. Zeroed: at the beginning. */
struct window_cursor {
	size_t region_i;
	uint64_t page_idx;
	uint64_t run_idx, run_end_idx; /* the run of data that was found last */
	/* -errno of looking for data; 0: none. After an error there may be more data */
	int error;
};

static inline bool window_has_data(const struct window *window, uint64_t page_idx)
{
	uint64_t bit = page_idx - window->page_idx;

	return window->data[bit / 64] >> (bit % 64) & 1;
}

/* Pass over the page, as if it had no data. */
static inline void window_take_out(struct window *window, uint64_t page_idx)
{
	uint64_t bit = page_idx - window->page_idx;

	window->data[bit / 64] &= ~((uint64_t)1 << (bit % 64));
}

/* Some pages of a window, as a window. */
void window_part(const struct window *window, uint64_t page_idx, uint64_t pages, struct window *out);

/* The window of a page; .data is not filled. */
void window_around(const struct region *region, uint64_t page_idx, struct window *out);

/* The next window in which the memfd has data. .data may be out of date: a page that is a hole by now reads
 * as zeros, and a page that was filled since is left for the next pass. */
bool window_next_data(const struct memory *memory, struct window_cursor *cursor, struct window *out);

/* The next window with records in the page map; .data is not filled. */
bool window_next_used(const struct memory *memory, struct page_map *map, struct window_cursor *cursor,
		      struct window *out);

#endif
