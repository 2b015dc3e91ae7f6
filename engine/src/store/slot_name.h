/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a slot index means. It is the page map's name for where a page is, has 35 bits, and names one of three
 * things:
 *
 *   below 2^32            a page of one file: the memory file of a snapshot, or the swap file of version 0.1
 *   2^32 up to 7 * 2^32   a record in the log: its segment, and the granule at which it begins there
 *   7 * 2^32 and above    a same-filled page: the index of its word in the table of fills
 *
 * A record's name does not depend on its tier: a segment keeps its number when it moves from RAM to disk, and
 * only the segment table says where it is. So ageing changes no page's word. Only compaction, which copies
 * records, gives new names. */
#ifndef VMMSWAP_SLOT_NAME_H
#define VMMSWAP_SLOT_NAME_H

#include <stdbool.h>
#include <stdint.h>

#define SEGMENT_SHIFT 21
#define SEGMENT_BYTES ((uint64_t)1 << SEGMENT_SHIFT)
#define GRANULE_SHIFT 6 /* records begin at multiples of 64 bytes */
#define SEGMENT_GRANULES ((uint32_t)(SEGMENT_BYTES >> GRANULE_SHIFT))
#define SEGMENT_RAW_GRANULES 65u /* of a record that is not compressed */
#define SEGMENT_GRANULE_BITS (SEGMENT_SHIFT - GRANULE_SHIFT)

#define SLOT_LOG_FIRST ((uint64_t)1 << 32)
#define SLOT_FILL_FIRST ((uint64_t)7 << 32)
#define SLOT_END ((uint64_t)8 << 32)

/* 1.5 TiB of records. */
#define SEGMENTS_MAX ((uint32_t)((SLOT_FILL_FIRST - SLOT_LOG_FIRST) >> SEGMENT_GRANULE_BITS))

static inline bool slot_is_fill(uint64_t slot_idx)
{
	return slot_idx >= SLOT_FILL_FIRST;
}

static inline bool slot_is_record(uint64_t slot_idx)
{
	return slot_idx >= SLOT_LOG_FIRST && slot_idx < SLOT_FILL_FIRST;
}

static inline uint64_t slot_of_record(uint32_t segment_idx, uint32_t granule)
{
	return SLOT_LOG_FIRST + ((uint64_t)segment_idx << SEGMENT_GRANULE_BITS) + granule;
}

static inline uint32_t slot_segment(uint64_t slot_idx)
{
	return (uint32_t)((slot_idx - SLOT_LOG_FIRST) >> SEGMENT_GRANULE_BITS);
}

static inline uint32_t slot_granule(uint64_t slot_idx)
{
	return (uint32_t)(slot_idx & (SEGMENT_GRANULES - 1));
}

#endif
