/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/thin.h"

#include "store/record.h"
#include "store/segments_inside.h"
#include "store/tend.h"

bool segments_is_thin(const struct segments *segments, uint32_t segment_idx)
{
	const struct segment *own = own_of(segments, segment_idx);

	return atomic_load(&own->live_granules) < atomic_load(&own->kept_granules) / 2;
}

bool segments_claim_thin(struct segments *segments, uint32_t *segment_idx, uint32_t *place_idx)
{
	bool found = false;

	pthread_mutex_lock(&segments->lock);
	for (uint32_t idx = 0; idx < segments->known_n && !found; idx++) {
		struct segment *own = own_of(segments, idx);

		found = own->state == SEGMENT_SEALED && own->disk_place_n && segments_is_thin(segments, idx);
		if (!found)
			continue;
		own->state = SEGMENT_MOVING;
		atomic_store(&own->kept_granules, atomic_load(&own->live_granules));
		*segment_idx = idx;
		*place_idx = own->disk_place_n - 1;
	}
	pthread_mutex_unlock(&segments->lock);
	return found;
}

/* Keep the whole blocks that a read of a record in use reads (log_read.c). Returns how much was given
 * back. */
static uint64_t punch_between(struct log *log, uint32_t segment_idx, uint32_t place_idx)
{
	uint64_t unused_bytes = 0, given_bytes = 0; /* unused_bytes: from there on nothing in use was seen */

	for (uint32_t granule = 0; segments_next_live(&log->segments, segment_idx, &granule); granule++) {
		uint64_t from_bytes = (uint64_t)granule << GRANULE_SHIFT;
		uint64_t size_bytes = (uint64_t)segments_extent(&log->segments, segment_idx, granule)
				      << GRANULE_SHIFT;
		uint64_t end_bytes =
			from_bytes + (size_bytes < RECORD_BYTES_MAX ? size_bytes : RECORD_BYTES_MAX);

		from_bytes &= ~(DISK_BLOCK_BYTES - 1);
		end_bytes = (end_bytes + DISK_BLOCK_BYTES - 1) & ~(DISK_BLOCK_BYTES - 1);
		if (from_bytes > unused_bytes)
			given_bytes += disk_tier_punch(log->disk, place_idx, unused_bytes,
						       from_bytes - unused_bytes);
		if (end_bytes > unused_bytes)
			unused_bytes = end_bytes;
	}
	if (SEGMENT_BYTES > unused_bytes)
		given_bytes +=
			disk_tier_punch(log->disk, place_idx, unused_bytes, SEGMENT_BYTES - unused_bytes);
	return given_bytes;
}

/* While it is claimed, nobody frees it, so its place is its own; and no record is added, so what is not in
 * use now never will be. Who still reads there by an old name finds that out afterwards, as ever. */
bool log_thin_step(struct log *log)
{
	uint32_t segment_idx, place_idx;

	if (!log->disk || !segments_claim_thin(&log->segments, &segment_idx, &place_idx))
		return false;
	disk_tier_given_back(log->disk, place_idx, punch_between(log, segment_idx, place_idx));
	segments_unclaim(&log->segments, segment_idx);
	log_thin_later(log); /* who looked while it was claimed has passed it over */
	return true;
}
