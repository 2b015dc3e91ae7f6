/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The log's segments: where each is, and which of its records are in use.
 *
 * Two halves. The table lives in a memfd that outlives the process: for each segment one entry that says where it is and under which
 * serial number it is sealed. It is all that a successor needs besides the page map: which records are in use, the page map tells
 * (segments_mark()), and segments that nobody marks are free. The other half is this process's own: state, bits and counts of the
 * segments in use.
 *
 *   FREE -> OPEN       segments_take(): one writer appends records
 *   OPEN -> SEALED     segments_seal(): nothing is added any more
 *   SEALED -> MOVING   segments_claim(): somebody copies it to the disk, or its records away; pages are still read from where it was
 *   MOVING -> SEALED   segments_unclaim(): in the other tier, or as before
 *   SEALED -> EMPTY    its last record in use was dropped: on the list of what can be given back
 *   EMPTY -> FREE      segments_take_empty() and segments_free()
 *
 * Who reads a segment's memory says so (segments_enter/leave): memory that somebody may be reading is given back later, and nobody ever
 * waits for a reader. */
#ifndef VMMSWAP_SEGMENTS_H
#define VMMSWAP_SEGMENTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "store/fills.h"
#include "store/slot_name.h"

enum segment_tier { TIER_NONE = 0, TIER_RAM = 1, TIER_DISK = 2 };
enum segment_state { SEGMENT_FREE = 0, SEGMENT_OPEN, SEGMENT_SEALED, SEGMENT_MOVING, SEGMENT_EMPTY };

struct segment_entry {			/* in shared memory */
	_Atomic uint64_t place;		/* tier in the top byte, place on disk below */
	_Atomic uint64_t serial;	/* of what is on disk; valid before place says so */
	_Atomic uint32_t used_granules; /* how far it is written */
	_Atomic uint32_t born_s;	/* CLOCK_BOOTTIME, when it was taken */
	_Atomic uint32_t raw;		/* its records are pages that do not compress */
	uint32_t reserved;
};

#define SEGMENT_BIT_WORDS (SEGMENT_GRANULES / 64)
#define SEGMENTS_IN_PIECE 512
#define SEGMENT_PIECES (SEGMENTS_MAX / SEGMENTS_IN_PIECE)

struct segment { /* this process's own */
	_Atomic uint8_t state;
	_Atomic bool
		stale_ram; /* it is on disk, and its memory could not be given back yet: somebody reads there */
	_Atomic uint32_t readers;
	_Atomic uint32_t live_n;	/* records in use */
	_Atomic uint32_t live_granules; /* of them */
};

struct segment_bits {				    /* two pages, given back when the segment is free */
	_Atomic uint64_t starts[SEGMENT_BIT_WORDS]; /* where records begin, in use or not */
	_Atomic uint64_t live[SEGMENT_BIT_WORDS];   /* where those in use begin */
};

struct segment_piece; /* 512 of both */

struct segments {
	int fd;
	struct segments_table *table;
	struct segment_entry *entries;
	struct fills_table *fills;

	struct segment_piece *_Atomic pieces
		[SEGMENT_PIECES]; /* never unmapped before the end: threads read them without a lock */

	pthread_mutex_t lock;	  /* of states, and of what follows */
	_Atomic uint32_t known_n; /* segments ever in use; those at and above are FREE */
	uint32_t free_from_idx;	  /* none below is FREE */
	uint32_t empty_n;
	_Atomic uint32_t ram_n; /* segments with memory */
	_Atomic uint64_t live_n, live_granules, raw_n;
};

/* fd -1: new; else that of a predecessor, dup'ed. -EPROTO: no such table. */
int segments_open(struct segments *segments, int fd, struct error *err);
void segments_close(struct segments *segments);

static inline enum segment_tier place_tier(uint64_t place)
{
	return (enum segment_tier)(place >> 56);
}

static inline uint64_t place_of(enum segment_tier tier, uint32_t place_idx)
{
	return (uint64_t)tier << 56 | place_idx;
}

/* Recovery: the record is in use. -ERANGE: no record can be there; -EEXIST: marked before. */
int segments_mark(struct segments *segments, uint32_t segment_idx, uint32_t granule);
/* After the last mark: what has no record in use is EMPTY, all else SEALED. */
void segments_recovered(struct segments *segments);

/* A segment that was FREE, now OPEN, without memory yet. -ENOMEM, -EFBIG: all are in use. */
int segments_take(struct segments *segments, bool raw, uint32_t *segment_idx);
/* It has memory: from here on a successor knows it. */
void segments_now_in_ram(struct segments *segments, uint32_t segment_idx);
/* Of an OPEN one that could get none. */
void segments_put_back(struct segments *segments, uint32_t segment_idx);

/* A record was written at granule, so long. By the segment's only writer. */
void segments_add(struct segments *segments, uint32_t segment_idx, uint32_t granule, uint32_t granules);
void segments_seal(struct segments *segments, uint32_t segment_idx);

/* The record is not in use any more. False: it was not, which is a bug. True in *emptied if there is something to give back now. Any thread. */
bool segments_drop(struct segments *segments, uint32_t segment_idx, uint32_t granule, bool *emptied);

/* The oldest SEALED one in RAM that is as old as that at least; MOVING from here on. raw ones come first. */
bool segments_claim_oldest(struct segments *segments, uint32_t born_before_s, uint32_t *segment_idx);
/* The SEALED one in RAM with the least in use, if that is less than `below_granules`. */
bool segments_claim_sparsest(struct segments *segments, uint32_t below_granules, uint32_t *segment_idx);
/* It is in the other tier now. */
void segments_now_on_disk(struct segments *segments, uint32_t segment_idx, uint32_t place_idx,
			  uint64_t serial);
/* SEALED again, or EMPTY. */
void segments_unclaim(struct segments *segments, uint32_t segment_idx);

/* One EMPTY segment that nobody reads; it is the caller's until segments_free(). */
bool segments_take_empty(struct segments *segments, uint32_t *segment_idx);
void segments_free(struct segments *segments, uint32_t segment_idx);

/* Where the segment is, for somebody who reads there until segments_leave(). */
uint64_t segments_enter(struct segments *segments, uint32_t segment_idx);
void segments_leave(struct segments *segments, uint32_t segment_idx);

/* The memory of one that is on disk now can be given back: nobody reads there. False: later, by segments_take_stale(). */
bool segments_leave_ram(struct segments *segments, uint32_t segment_idx);
/* One whose memory can be given back now. */
bool segments_take_stale(struct segments *segments, uint32_t *segment_idx);
/* Of one that is the caller's alone: whether its memory is still to be given back. */
bool segments_clear_stale(struct segments *segments, uint32_t segment_idx);
/* Its memory is gone. */
void segments_ram_is_gone(struct segments *segments);

/* How many granules there are from a record's begin to the next one's, or to the end of what is written: it is no longer than that. */
uint32_t segments_extent(const struct segments *segments, uint32_t segment_idx, uint32_t granule);
/* The first record in use at or after granule; false: none. */
bool segments_next_live(const struct segments *segments, uint32_t segment_idx, uint32_t *granule);

#endif
