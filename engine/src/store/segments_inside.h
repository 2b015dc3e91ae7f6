/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Segments from the inside: segments.c, and segments_open.c, where they begin. */
#ifndef VMMSWAP_SEGMENTS_INSIDE_H
#define VMMSWAP_SEGMENTS_INSIDE_H

#include "store/segments.h"

struct segments_table {
	char magic[8];
	_Atomic uint32_t known_n;
	uint32_t reserved[13];
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

/* Room for what this process has of a segment. -ENOMEM. Under the lock, or alone. */
int segments_make_room(struct segments *segments, uint32_t segment_idx);

/* A record is in use now. */
void segments_count_live(struct segments *segments, uint32_t segment_idx, uint32_t granules);

#endif
