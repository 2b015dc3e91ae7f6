/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/removal.h"

#include "base/held.h"

bool removals_add(struct removals *removals, uint64_t page_idx, uint64_t pages, uint32_t given_up_ms)
{
	HELD_NEEDS(HELD_GATE_ALONE);
	if (removals->n == REMOVALS_MAX)
		return false;
	removals->list[removals->n] = (struct removal){ page_idx, page_idx + pages, given_up_ms };
	removals->n++;
	return true;
}

static void drop(struct removals *removals, uint32_t i)
{
	removals->n--;
	removals->list[i] = removals->list[removals->n];
}

bool removals_take(struct removals *removals, struct removal *piece)
{
	struct removal *first = &removals->list[0];

	HELD_NEEDS(HELD_GATE_ALONE);
	if (!removals->n)
		return false;
	*piece = *first;
	if (piece->end_idx - piece->page_idx > REMOVAL_PIECE_PAGES)
		piece->end_idx = piece->page_idx + REMOVAL_PIECE_PAGES;
	first->page_idx = piece->end_idx;
	if (first->page_idx == first->end_idx)
		drop(removals, 0);
	return true;
}

void removals_forget(struct removals *removals, uint64_t page_idx, uint64_t pages)
{
	HELD_NEEDS(HELD_GATE_ALONE);
	for (uint32_t i = removals->n; i > 0; i--) {
		const struct removal *removal = &removals->list[i - 1];

		if (removal->page_idx < page_idx + pages && page_idx < removal->end_idx)
			drop(removals, i - 1);
	}
}

bool removals_have(const struct removals *removals, uint64_t page_idx, uint64_t pages)
{
	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
	for (uint32_t i = 0; i < removals->n; i++)
		if (removals->list[i].page_idx < page_idx + pages && page_idx < removals->list[i].end_idx)
			return true;
	return false;
}
