/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which slots of the store's file are taken: one bit per slot, and a few bytes for each extent of 512 slots
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

/* Take n slots (n > 0): one run, growing the file if necessary; or several pieces, if most of the file is
 * unused and it is full of gaps. 0, -ENOMEM, or -EFBIG beyond STORE_SLOTS_MAX. */
int slots_take(struct slots *slots, size_t n, uint64_t *slot_idx);

/* Take n slots that already have disk blocks, in as many pieces as necessary. -ENOSPC (nothing taken): there
 * are not that many. */
int slots_take_spare(struct slots *slots, size_t n, uint64_t *slot_idx);

/* Free a slot. False: it was not taken. */
bool slots_free(struct slots *slots, uint64_t slot_idx);

/* Recovery: make room for slots_n slots, all free and dirty; then call slots_take_one() for those in use.
 * -ENOMEM. */
int slots_adopt(struct slots *slots, uint64_t slots_n);
/* False: it is already taken. slot_idx must be below slots_n of slots_adopt(). */
bool slots_take_one(struct slots *slots, uint64_t slot_idx);

/* Claim an emptied extent, so that its blocks can be released with no lock held; false if there is none.
 * slots_unclaim() ends the claim: `emptied` is true if the blocks are gone. */
bool slots_claim_emptied(struct slots *slots, size_t *extent_idx);
void slots_unclaim(struct slots *slots, size_t extent_idx, bool emptied);

/* Forget the extents from extents_n on. Only when none of them is claimed, and nobody needs their taken
 * slots. */
void slots_cut(struct slots *slots, size_t extents_n);

/* Forget all extents and free their memory. Only when none is claimed, and nobody needs the taken slots. */
void slots_clear(struct slots *slots);

#endif
