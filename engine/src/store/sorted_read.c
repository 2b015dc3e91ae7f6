/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/sorted_read.h"

#include <stdlib.h>

/* A disk reads what lies between in less time than it takes to begin another read. */
#define GAP_PAGES_MAX ((uint64_t)8)

struct wanted {
	uint64_t slot_idx;
	size_t i; /* the page of the buffer that it goes to */
};

static int by_slot(const void *left, const void *right)
{
	const struct wanted *a = left, *b = right;

	return a->slot_idx < b->slot_idx ? -1 : a->slot_idx > b->slot_idx;
}

/* Pages that went out together come back in their order: nothing to sort. */
static void sort(struct wanted *wanted, size_t n)
{
	size_t i = 1;

	while (i < n && wanted[i - 1].slot_idx < wanted[i].slot_idx)
		i++;
	if (i < n)
		qsort(wanted, n, sizeof *wanted, by_slot);
}

/* Append the page, and before it what lies between it and the last one, which goes to `gap`. False: it needs
 * a read of its own. */
static bool add_near(struct pieces *pieces, const struct wanted *wanted, uint64_t from_idx, char *buf,
		     void *gap)
{
	uint64_t end_idx = from_idx + pages_of_bytes(pieces->bytes);
	uint64_t gap_pages = wanted->slot_idx - end_idx;

	if (wanted->slot_idx < end_idx || gap_pages > GAP_PAGES_MAX || pieces->n + gap_pages + 1 > PIECES_MAX)
		return false;
	while (gap_pages--)
		pieces_add(pieces, gap, PAGE_BYTES);
	return pieces_add(pieces, buf + bytes_of_pages(wanted->i), PAGE_BYTES);
}

int sorted_read(struct swap_file *file, const uint64_t *slot_idx, size_t n, void *buf)
{
	_Alignas(4096) char gap[PAGE_BYTES];
	struct wanted wanted[CHUNK_PAGES];
	struct pieces pieces;
	int rc = 0;

	for (size_t i = 0; i < n; i++)
		wanted[i] = (struct wanted){ slot_idx[i], i };
	sort(wanted, n);
	for (size_t i = 0, run; i < n && !rc; i += run) {
		pieces_of_one(&pieces, (char *)buf + bytes_of_pages(wanted[i].i), PAGE_BYTES);
		for (run = 1;
		     i + run < n && add_near(&pieces, &wanted[i + run], wanted[i].slot_idx, buf, gap);)
			run++;
		rc = swap_file_read(file, &pieces, bytes_of_pages(wanted[i].slot_idx));
	}
	return rc;
}
