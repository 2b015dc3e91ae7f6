/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The words that fill whole pages, each stored once: a page that repeats one 8-byte word takes no room for
 * its data.
 *
 * The table lives in memory that outlives the process. A word never leaves the table and never changes its
 * index, so an index in the page map stays valid after any crash. Once the table is full, pages filled with
 * other words are compressed like any other page. */
#ifndef VMMSWAP_FILLS_H
#define VMMSWAP_FILLS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define FILLS_MAX 16384

struct fills_table { /* in shared memory */
	_Atomic uint32_t n;
	uint32_t reserved;
	uint64_t words[FILLS_MAX];
};

struct fills {
	struct fills_table *table;
	pthread_mutex_t lock;
	uint16_t *buckets;	/* open hash of 1 + index; 0: free */
	_Atomic uint64_t pages; /* number of swapped-out pages that are same-filled */
};

/* -ENOMEM. The words already in the table stay. */
int fills_open(struct fills *fills, struct fills_table *table);
void fills_close(struct fills *fills);

/* True if all 512 words of the page are equal. */
bool page_fill_of(const void *page, uint64_t *word);

/* The index of the word; false if the table is full. Any thread. */
bool fills_put(struct fills *fills, uint64_t word, uint32_t *fill_idx);

/* -EIO: there is no such index. */
int fills_get(const struct fills *fills, uint32_t fill_idx, void *page);

#endif
