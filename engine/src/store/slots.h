/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which slots of the store's file are taken: one bit a slot, and a few bytes for each extent of 512 slots
 * (2 MiB). Knows nothing of files. Not thread safe: the store holds its lock around every call. */
#ifndef VMMSWAP_SLOTS_H
#define VMMSWAP_SLOTS_H

#include "base/units.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXTENT_SLOTS 512
#define EXTENT_BYTES (EXTENT_SLOTS * PAGE_BYTES)
#define EXTENT_WORDS (EXTENT_SLOTS / 64)

struct extent {
	uint64_t taken[EXTENT_WORDS]; /* bit set: slot taken */
	uint16_t taken_n;
	bool dirty;   /* may hold disk blocks: a slot was taken since it was last emptied */
	bool claimed; /* being emptied: gives no slots */
};

struct slots {
	struct extent *extents;
	size_t extents_n;	/* in use */
	size_t extents_room;	/* allocated */
	size_t next_extent_idx; /* where the next search starts */
	size_t next_claim_idx;	/* where the next slots_claim_emptied() starts, going down */
	uint64_t taken_n;	/* over all extents */
	size_t emptied_n;	/* extents that are dirty, without a taken slot, and not claimed */
	size_t claimed_n;
	uint64_t spare_n; /* free slots in dirty, unclaimed extents: they cost no new disk space */
};

/* Take n slots (n > 0): one run, for which the file grows if need be; pieces where most of the file is
 * unused and it is full of gaps. 0, -ENOMEM, or -EFBIG beyond STORE_SLOTS_MAX. */
int slots_take(struct slots *slots, size_t n, uint64_t *slot_idx);

/* Take n slots that had disk blocks before, in as many pieces as it needs. -ENOSPC (nothing taken): not
 * that many. */
int slots_take_spare(struct slots *slots, size_t n, uint64_t *slot_idx);

/* Free a slot. false: it was not taken. */
bool slots_free(struct slots *slots, uint64_t slot_idx);

/* Recovery: make room for slots_n slots, all free and dirty; then take particular ones. -ENOMEM. */
int slots_adopt(struct slots *slots, uint64_t slots_n);
/* false: it is taken already. slot_idx must be below the adopted number. */
bool slots_take_one(struct slots *slots, uint64_t slot_idx);

/* Claim an emptied extent, so that its blocks can be given back with no lock held; false if there is none.
 * slots_unclaim() ends it: emptied says whether the blocks are gone. */
bool slots_claim_emptied(struct slots *slots, size_t *extent_idx);
void slots_unclaim(struct slots *slots, size_t extent_idx, bool emptied);

/* Forget the extents from this one on. Only when nothing of them is claimed, and nobody wants what is taken. */
void slots_cut(struct slots *slots, size_t extents_n);

/* Forget all extents and their memory. Only when nothing is claimed, and nobody wants what is taken. */
void slots_clear(struct slots *slots);

#endif
