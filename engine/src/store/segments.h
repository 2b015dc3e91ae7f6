/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The log's segments: where each is, and which of its records are in use.
 *
 * There are two halves. The table lives in a memfd that outlives the process: each segment has one entry,
 * with its place and the serial number it is sealed under. Besides the table, a successor needs only the page
 * map: that says which records are in use (segments_mark()), and segments without a mark are free. The other
 * half belongs to this process alone: state, bits and counts of the segments in use.
 *
 *   FREE -> OPEN       segments_take(): one writer appends records
 *   OPEN -> SEALED     segments_seal(): no more records are added
 *   SEALED -> MOVING   segments_claim_*(): somebody copies it to disk, or copies its records to another
 *                      segment; pages are still read from the old place
 *   MOVING -> SEALED   segments_unclaim(): in the other tier, or unchanged
 *   SEALED -> EMPTY    its last record in use was dropped: it is on the list of segments to free
 *   EMPTY -> FREE      segments_take_empty() and segments_free()
 *
 * Readers of a segment's memory call segments_enter() and segments_leave(): memory that somebody may be
 * reading is released later, and nobody ever waits for a reader. */
#ifndef VMMSWAP_SEGMENTS_H
#define VMMSWAP_SEGMENTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "store/fills.h"
#include "store/slot_name.h"

/* LOST: a successor found an entry that cannot be right. Its pages cannot be read, and nothing of it is
 * released. */
enum segment_tier { TIER_NONE = 0, TIER_RAM = 1, TIER_DISK = 2, TIER_LOST = 255 };
enum segment_pages { PAGES_COMPRESSED = 0, PAGES_RAW = 1, PAGES_INCOMPRESSIBLE = 2 };
enum segment_state { SEGMENT_FREE = 0, SEGMENT_OPEN, SEGMENT_SEALED, SEGMENT_MOVING, SEGMENT_EMPTY };

struct segment_entry {			/* in shared memory */
	_Atomic uint64_t place;		/* tier in the top byte, place there below */
	_Atomic uint64_t serial;	/* of the image on disk; set before place */
	_Atomic uint32_t used_granules; /* end of what is written */
	_Atomic uint32_t born_s;	/* CLOCK_BOOTTIME, when it was taken */
	_Atomic uint32_t pages;		/* enum segment_pages: what its records hold */
	uint32_t reserved;
};

#define SEGMENT_BIT_WORDS (SEGMENT_GRANULES / 64)
#define SEGMENTS_IN_PIECE 512
#define SEGMENT_PIECES (SEGMENTS_MAX / SEGMENTS_IN_PIECE)

struct segment { /* this process's own */
	_Atomic uint8_t state;
	_Atomic bool
		stale_ram; /* it is on disk, but its memory is not released yet: somebody is reading it */
	_Atomic uint32_t ram_place_n; /* 1 + its place in RAM; 0: it has no memory */
	uint32_t disk_place_n;	      /* 1 + its place on disk; 0: it is not there; under the lock */
	/* Of the image that went to disk, or those in use when blocks were last given back there; 0: it is
	 * not there. */
	_Atomic uint32_t kept_granules;
	_Atomic uint32_t readers;
	_Atomic uint32_t live_n;	/* records in use */
	_Atomic uint32_t live_granules; /* of them */
	uint32_t stuck_n;		/* live_n when compaction could move none of them; under the lock */
};

/* Two pages, released when the segment is free. A page that was never written to costs no memory. */
struct segment_bits {
	/* Where records begin, in use or not. Unused for pages that do not compress: all their records are
	 * SEGMENT_RAW_GRANULES long. */
	_Atomic uint64_t starts[SEGMENT_BIT_WORDS];
	_Atomic uint64_t live[SEGMENT_BIT_WORDS]; /* where those in use begin */
};

struct segment_piece; /* the two structs above, for 512 segments */

struct segments {
	int fd;
	struct segments_table *table;
	struct segment_entry *entries;
	struct fills_table *fills;

	struct segment_piece *_Atomic pieces
		[SEGMENT_PIECES]; /* never unmapped before the end: threads read them without a lock */

	pthread_mutex_t lock;	  /* protects the states, and what follows */
	_Atomic uint32_t known_n; /* number ever in use; all from here on are FREE */
	uint32_t free_from_idx;	  /* no segment below it is FREE */
	uint32_t empty_n;
	_Atomic uint32_t ram_n; /* segments with memory */
	_Atomic uint64_t live_n, live_granules, raw_n;
};

/* What a successor must have besides the table. */
enum table_tiers { TABLE_HAS_DISK = 1, TABLE_HAS_KEY = 2 };
void segments_note_tiers(struct segments *segments, uint32_t tiers);
uint32_t segments_tiers(const struct segments *segments); /* 0: none, or an older version made the table */

/* fd -1: create a table; else take over a predecessor's, which is dup'ed. -EPROTO: fd holds no such table. */
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

/* Recovery: mark the record as in use. -ERANGE: no record can be there; -EEXIST: already marked. */
int segments_mark(struct segments *segments, uint32_t segment_idx, uint32_t granule);
/* Call after the last mark: segments without a record in use become EMPTY, all others SEALED. */
void segments_recovered(struct segments *segments);

/* Take a FREE segment; it is now OPEN, without memory yet. -ENOMEM, -EFBIG: all are in use. */
int segments_take(struct segments *segments, enum segment_pages pages, uint32_t *segment_idx);
/* The segment has memory now: from here on a successor knows of it. */
void segments_now_in_ram(struct segments *segments, uint32_t segment_idx, uint32_t place_idx);
/* Where its memory is; false: it has none. Bits of the table may flip, so this does not come from there. */
bool segments_ram_place(const struct segments *segments, uint32_t segment_idx, uint32_t *place_idx);
/* Give back an OPEN segment that could get no memory. */
void segments_put_back(struct segments *segments, uint32_t segment_idx);

/* A record of `granules` granules was written at `granule`. Only the segment's writer calls this. */
void segments_add(struct segments *segments, uint32_t segment_idx, uint32_t granule, uint32_t granules);
void segments_seal(struct segments *segments, uint32_t segment_idx);

/* The record is no longer in use. False: it was not in use, which is a bug. *is_work is true if the segment
 * has become empty, or sparse. Any thread. */
bool segments_drop(struct segments *segments, uint32_t segment_idx, uint32_t granule, bool *is_work);

/* Claim the oldest SEALED segment in RAM that was taken at born_before_s or earlier; it is MOVING from here
 * on. Segments of incompressible pages count as older than all others. */
bool segments_claim_oldest(struct segments *segments, uint32_t born_before_s, uint32_t *segment_idx);
/* When the oldest SEALED segment in RAM began; 0: it holds incompressible pages. False: there is none. */
bool segments_oldest_s(struct segments *segments, uint32_t *born_s);
/* Claim the first sparse segment at or after from_idx whose compaction can release memory. It is SEALED and
 * in RAM, and less than half of it is in use; and some of what is written there is not, or the records of two
 * such segments fit into one. has_target: there is an open segment for the records of that kind. */
bool segments_claim_sparse(struct segments *segments, uint32_t from_idx, const bool has_target[2],
			   uint32_t *segment_idx);
/* Nothing of a claimed segment could be moved: it is not sparse until a record of it is dropped. */
void segments_stuck(struct segments *segments, uint32_t segment_idx);
/* Records of `from_idx` were copied to to_idx: that is as old as both. */
void segments_inherit_age(struct segments *segments, uint32_t to_idx, uint32_t from_idx);
/* True if some memory or a segment could not be released yet, because somebody is reading it. */
bool segments_has_leftovers(struct segments *segments);
/* The segment is on disk now, by an image of so many granules. */
void segments_now_on_disk(struct segments *segments, uint32_t segment_idx, uint32_t place_idx,
			  uint64_t serial, uint32_t image_granules);
/* True if the segment is on disk, and less than half is in use of what has blocks there. */
bool segments_is_thin(const struct segments *segments, uint32_t segment_idx);
/* Claim a SEALED one of those; place_idx: where it is. From here on, what is in use now counts as what has
 * blocks. */
bool segments_claim_thin(struct segments *segments, uint32_t *segment_idx, uint32_t *place_idx);

/* The segment is SEALED again, or EMPTY. */
void segments_unclaim(struct segments *segments, uint32_t segment_idx);

/* Take an EMPTY segment that nobody is reading; it belongs to the caller until segments_free(). */
bool segments_take_empty(struct segments *segments, uint32_t *segment_idx);
void segments_free(struct segments *segments, uint32_t segment_idx);

/* Returns the segment's place. The caller may read there until segments_leave(). */
uint64_t segments_enter(struct segments *segments, uint32_t segment_idx);
void segments_leave(struct segments *segments, uint32_t segment_idx);

/* True if nobody is reading the memory of a segment that is now on disk: the caller may release it. False:
 * segments_take_stale() returns it later. */
bool segments_leave_ram(struct segments *segments, uint32_t segment_idx);
/* Claim a segment on disk whose memory can be released now; then call segments_take_ram() and
 * segments_unclaim(). */
bool segments_take_stale(struct segments *segments, uint32_t *segment_idx);
/* Take its memory from a segment that belongs to the caller alone. The caller releases it, and then calls
 * segments_ram_is_gone(). False: it has none. */
bool segments_take_ram(struct segments *segments, uint32_t segment_idx, uint32_t *place_idx);
void segments_ram_is_gone(struct segments *segments);

/* The number of granules from the start of a record to the start of the next, or to the end of what is
 * written: the record is no longer than that. */
uint32_t segments_extent(const struct segments *segments, uint32_t segment_idx, uint32_t granule);
/* The first record in use at or after granule; false: none. */
bool segments_next_live(const struct segments *segments, uint32_t segment_idx, uint32_t *granule);

#endif
