/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Internals shared by segments.c and segments_open.c, which opens the table. */
#ifndef VMMSWAP_SEGMENTS_INSIDE_H
#define VMMSWAP_SEGMENTS_INSIDE_H

#include "store/segments.h"

struct segments_table {
	char magic[8];
	_Atomic uint32_t known_n;
	_Atomic uint32_t tiers; /* of enum table_tiers: what the segments cannot be read without */
	uint32_t reserved[12];
	struct fills_table fills;
	struct segment_entry entries[];
};

struct segment_piece {
	struct segment_bits bits[SEGMENTS_IN_PIECE]; /* first: page aligned */
	struct segment own[SEGMENTS_IN_PIECE];
};

static inline struct segment *own_of(const struct segments *segments, uint32_t segment_idx)
{
	return &segments->pieces[segment_idx / SEGMENTS_IN_PIECE]->own[segment_idx % SEGMENTS_IN_PIECE];
}

static inline struct segment_bits *bits_of(const struct segments *segments, uint32_t segment_idx)
{
	return &segments->pieces[segment_idx / SEGMENTS_IN_PIECE]->bits[segment_idx % SEGMENTS_IN_PIECE];
}

/* Allocate this process's data on a segment. -ENOMEM. Call it under the lock, or with no other thread. */
int segments_make_room(struct segments *segments, uint32_t segment_idx);

/* Count one more record in use. */
void segments_count_live(struct segments *segments, uint32_t segment_idx, uint32_t granules);

#endif
