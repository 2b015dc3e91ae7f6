/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/fills.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/units.h"

#define BUCKETS (2 * FILLS_MAX)
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))

/* The bucket of a word, or the free bucket where it belongs. At least half of all buckets are free. */
static uint32_t bucket_of(const struct fills *fills, uint64_t word)
{
	uint32_t bucket = (uint32_t)((word * 0x9e3779b97f4a7c15ull) >> 32) % BUCKETS;

	while (fills->buckets[bucket] && fills->table->words[fills->buckets[bucket] - 1] != word)
		bucket = (bucket + 1) % BUCKETS;
	return bucket;
}

int fills_open(struct fills *fills, struct fills_table *table)
{
	uint32_t n = atomic_load(&table->n);

	*fills = (struct fills){ .table = table, .buckets = calloc(BUCKETS, sizeof *fills->buckets) };
	if (!fills->buckets)
		return -ENOMEM;
	pthread_mutex_init(&fills->lock, NULL);
	for (uint32_t idx = 0; idx < n && idx < FILLS_MAX; idx++)
		fills->buckets[bucket_of(fills, table->words[idx])] = (uint16_t)(idx + 1);
	return 0;
}

void fills_close(struct fills *fills)
{
	if (!fills->buckets)
		return;
	pthread_mutex_destroy(&fills->lock);
	free(fills->buckets);
	fills->buckets = NULL;
}

bool page_fill_of(const void *page, uint64_t *word)
{
	/* A page equals itself shifted by one word only if all its words are equal. */
	memcpy(word, page, sizeof *word);
	return memcmp(page, (const char *)page + sizeof *word, PAGE_BYTES - sizeof *word) == 0;
}

/* Under the lock. The word is in the table before its index can be seen. */
static bool add(struct fills *fills, uint64_t word, uint32_t bucket)
{
	uint32_t n = atomic_load(&fills->table->n);

	if (n >= FILLS_MAX)
		return false;
	fills->table->words[n] = word;
	atomic_store_explicit(&fills->table->n, n + 1, memory_order_release);
	fills->buckets[bucket] = (uint16_t)(n + 1);
	return true;
}

bool fills_put(struct fills *fills, uint64_t word, uint32_t *fill_idx)
{
	uint32_t bucket;
	bool is_there;

	pthread_mutex_lock(&fills->lock);
	bucket = bucket_of(fills, word);
	is_there = fills->buckets[bucket] || add(fills, word, bucket);
	if (is_there)
		*fill_idx = fills->buckets[bucket] - 1u;
	pthread_mutex_unlock(&fills->lock);
	return is_there;
}

int fills_get(const struct fills *fills, uint32_t fill_idx, void *page)
{
	uint64_t *words = page;

	if (fill_idx >= atomic_load_explicit(&fills->table->n, memory_order_acquire) || fill_idx >= FILLS_MAX)
		return -EIO;
	for (size_t i = 0; i < PAGE_WORDS; i++)
		words[i] = fills->table->words[fill_idx];
	return 0;
}
