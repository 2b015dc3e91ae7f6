/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/slots.h"
#include "store/store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define EXTENTS_MAX (STORE_SLOTS_MAX / EXTENT_SLOTS)

/* A search for a run looks at this many extents, then gives up: fault threads wait for the same lock. Each
 * search starts where the last one ended, so all extents are searched in turn. */
#define SEARCH_EXTENTS_MAX 1024

static bool is_taken(const struct extent *extent, size_t bit)
{
	return extent->taken[bit / 64] >> (bit % 64) & 1;
}

static bool is_emptied(const struct extent *extent)
{
	return extent->dirty && extent->taken_n == 0 && !extent->claimed;
}

static uint64_t spare_of(const struct extent *extent)
{
	return extent->dirty && !extent->claimed ? EXTENT_SLOTS - extent->taken_n : 0;
}

/* Bracket every change of an extent, so that the sums over all extents stay true. */
static void subtract(struct slots *slots, const struct extent *extent)
{
	slots->emptied_n -= is_emptied(extent);
	slots->spare_n -= spare_of(extent);
	slots->claimed_n -= extent->claimed;
	slots->taken_n -= extent->taken_n;
}

static void add(struct slots *slots, const struct extent *extent)
{
	slots->emptied_n += is_emptied(extent);
	slots->spare_n += spare_of(extent);
	slots->claimed_n += extent->claimed;
	slots->taken_n += extent->taken_n;
}

static void set_bit(struct slots *slots, uint64_t slot_idx)
{
	struct extent *extent = &slots->extents[slot_idx / EXTENT_SLOTS];
	size_t bit = slot_idx % EXTENT_SLOTS;

	subtract(slots, extent);
	extent->taken[bit / 64] |= (uint64_t)1 << (bit % 64);
	extent->taken_n++;
	extent->dirty = true;
	add(slots, extent);
}

bool slots_take_one(struct slots *slots, uint64_t slot_idx)
{
	if (is_taken(&slots->extents[slot_idx / EXTENT_SLOTS], slot_idx % EXTENT_SLOTS))
		return false;
	set_bit(slots, slot_idx);
	return true;
}

bool slots_free(struct slots *slots, uint64_t slot_idx)
{
	size_t bit = slot_idx % EXTENT_SLOTS;
	struct extent *extent;

	if (slot_idx / EXTENT_SLOTS >= slots->extents_n)
		return false;
	extent = &slots->extents[slot_idx / EXTENT_SLOTS];
	if (!is_taken(extent, bit))
		return false;
	subtract(slots, extent);
	extent->taken[bit / 64] &= ~((uint64_t)1 << (bit % 64));
	extent->taken_n--;
	add(slots, extent);
	return true;
}

static int grow(struct slots *slots, size_t extents_more)
{
	size_t extents_n = slots->extents_n + extents_more;

	if (!extents_more)
		return 0;
	if (extents_n > EXTENTS_MAX)
		return -EFBIG;
	if (extents_n > slots->extents_room) {
		size_t room = slots->extents_room + slots->extents_room / 4 + extents_more;
		struct extent *extents = realloc(slots->extents, room * sizeof *extents);

		if (!extents)
			return -ENOMEM;
		slots->extents = extents;
		slots->extents_room = room;
	}
	memset(slots->extents + slots->extents_n, 0, extents_more * sizeof *slots->extents);
	slots->extents_n = extents_n;
	return 0;
}

int slots_adopt(struct slots *slots, uint64_t slots_n)
{
	int rc = grow(slots, (slots_n + EXTENT_SLOTS - 1) / EXTENT_SLOTS);

	for (size_t i = 0; !rc && i < slots->extents_n; i++) {
		slots->extents[i].dirty = true;
		add(slots, &slots->extents[i]);
	}
	return rc;
}

/* Extend a free run of *run slots that ends before this extent through it. Returns the slot after the first n
 * of a run that is long enough, or 0 with *run free slots at the extent's end. */
static uint64_t extend_run(const struct extent *extent, uint64_t first_slot_idx, size_t n, size_t *run)
{
	if (extent->claimed || extent->taken_n == EXTENT_SLOTS) {
		*run = 0;
		return 0;
	}
	for (size_t bit = 0; bit < EXTENT_SLOTS;) {
		uint64_t word = extent->taken[bit / 64];
		size_t step = bit % 64 == 0 && (word == 0 || word == UINT64_MAX) ? 64 : 1;

		if (is_taken(extent, bit))
			*run = 0;
		else
			*run += step;
		bit += step;
		if (*run >= n)
			return first_slot_idx + bit - (*run - n);
	}
	return 0;
}

/* The first slot of a free run of n in extents [begin, end), or UINT64_MAX. */
static uint64_t find_run(const struct slots *slots, size_t begin, size_t end, size_t n)
{
	size_t run = 0;

	for (size_t i = begin; i < end; i++) {
		uint64_t past = extend_run(&slots->extents[i], (uint64_t)i * EXTENT_SLOTS, n, &run);

		if (past)
			return past - n;
	}
	return UINT64_MAX;
}

static uint64_t search_run(struct slots *slots, size_t n)
{
	size_t begin = slots->next_extent_idx < slots->extents_n ? slots->next_extent_idx : 0;
	size_t end = begin + SEARCH_EXTENTS_MAX;
	uint64_t first;

	if (end > slots->extents_n)
		end = slots->extents_n;
	first = find_run(slots, begin, end, n);
	if (first == UINT64_MAX && end == slots->extents_n && begin > 0)
		first = find_run(slots, 0, begin < SEARCH_EXTENTS_MAX ? begin : SEARCH_EXTENTS_MAX, n);
	slots->next_extent_idx = first == UINT64_MAX ? end : first / EXTENT_SLOTS;
	return first;
}

/* The run may begin in free slots at the present end. */
static int grow_for_run(struct slots *slots, size_t n, uint64_t *first)
{
	size_t last = slots->extents_n ? slots->extents_n - 1 : 0;
	int rc = grow(slots, (n + EXTENT_SLOTS - 1) / EXTENT_SLOTS);

	if (rc)
		return rc;
	*first = find_run(slots, last, slots->extents_n, n);
	slots->next_extent_idx = *first / EXTENT_SLOTS;
	return 0;
}

int slots_take_spare(struct slots *slots, size_t n, uint64_t *slot_idx)
{
	size_t got = 0;

	if (slots->spare_n < n)
		return -ENOSPC;
	for (size_t i = 0; got < n; i++) {
		struct extent *extent = &slots->extents[i];

		if (!spare_of(extent))
			continue;
		for (size_t bit = 0; bit < EXTENT_SLOTS && got < n; bit++) {
			if (is_taken(extent, bit))
				continue;
			slot_idx[got] = (uint64_t)i * EXTENT_SLOTS + bit;
			set_bit(slots, slot_idx[got++]);
		}
	}
	return 0;
}

int slots_take(struct slots *slots, size_t n, uint64_t *slot_idx)
{
	uint64_t first = search_run(slots, n);
	int rc;

	if (first == UINT64_MAX) {
		/* Growing costs space, pieces cost time: a run of free slots is spare_n / taken_n long or
		 * so, and a write of one page takes nearly as long as one of 32. So pieces only once runs
		 * are long enough, and when space runs out (store_put). */
		if (slots->spare_n > n + 4 * slots->taken_n)
			return slots_take_spare(slots, n, slot_idx);
		rc = grow_for_run(slots, n, &first);
		if (rc == -EFBIG && slots->spare_n >= n)
			return slots_take_spare(slots, n, slot_idx);
		if (rc)
			return rc;
	}
	for (size_t i = 0; i < n; i++) {
		slot_idx[i] = first + i;
		set_bit(slots, slot_idx[i]);
	}
	return 0;
}

bool slots_claim_emptied(struct slots *slots, size_t *extent_idx)
{
	struct extent *extent;

	if (!slots->emptied_n)
		return false;
	do {
		if (slots->next_claim_idx == 0 || slots->next_claim_idx > slots->extents_n)
			slots->next_claim_idx = slots->extents_n;
		extent = &slots->extents[--slots->next_claim_idx];
	} while (!is_emptied(extent));
	subtract(slots, extent);
	extent->claimed = true;
	add(slots, extent);
	*extent_idx = slots->next_claim_idx;
	return true;
}

void slots_unclaim(struct slots *slots, size_t extent_idx, bool emptied)
{
	struct extent *extent = &slots->extents[extent_idx];

	subtract(slots, extent);
	extent->claimed = false;
	extent->dirty = !emptied;
	add(slots, extent);
}

void slots_cut(struct slots *slots, size_t extents_n)
{
	while (slots->extents_n > extents_n)
		subtract(slots, &slots->extents[--slots->extents_n]);
	if (!extents_n)
		slots_clear(slots);
}

void slots_clear(struct slots *slots)
{
	free(slots->extents);
	*slots = (struct slots){ 0 };
}
